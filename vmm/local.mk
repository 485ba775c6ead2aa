# SPDX-License-Identifier: Apache-2.0
include $(srcdir)/vmm/net/local.mk
include $(srcdir)/vmm/engines/qemu/local.mk
include $(srcdir)/vmm/broker/local.mk
