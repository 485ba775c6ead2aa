# SPDX-License-Identifier: Apache-2.0
include $(srcdir)/guest/fs.mk
include $(srcdir)/guest/rpc.mk
include $(srcdir)/guest/agent.mk
