# SPDX-License-Identifier: Apache-2.0
# What the tests and fuzz targets need without the daemon around it.
noinst_LIBRARIES += libnbegress.a
libnbegress_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbegress_a_SOURCES = vmm/egress/address.c vmm/egress/address.h vmm/egress/dns.c vmm/egress/dns.h \
	vmm/egress/hello.c vmm/egress/hello.h vmm/egress/limits.h vmm/egress/names.c vmm/egress/names.h \
	vmm/egress/policy.c vmm/egress/policy.h

sbin_PROGRAMS += nestbox-egress
nestbox_egress_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS) $(CARES_CFLAGS)
nestbox_egress_SOURCES = vmm/egress/attach.c vmm/egress/attach.h vmm/egress/conn.c vmm/egress/conn.h vmm/egress/dnsd.c \
	vmm/egress/ledger.c vmm/egress/ledger.h vmm/egress/main.c vmm/egress/refuse.c vmm/egress/relay.c \
	vmm/egress/resolve.c vmm/egress/resolve.h vmm/egress/sandbox.c vmm/egress/sandbox.h
nestbox_egress_LDADD = libnbegress.a libnbschema.a libnbbase.a $(HARDEN_LIBS) $(JSONC_LIBS) $(CARES_LIBS) $(OPENSSL_LIBS) -lpthread
EXTRA_DIST += doc/egress.md
dist_man_MANS += doc/man/nestbox-egress.8

check_PROGRAMS += tests/it/test_egress
tests_it_test_egress_SOURCES = tests/it/test_egress.c tests/it/egressbed.c tests/it/egressbed.h tests/it/guestns.c \
	tests/it/guestns.h tests/lib/hello.h
tests_it_test_egress_LDADD = libnbegress.a libnbnet.a $(UNIT_LIBS) $(NET_LIBS) $(OPENSSL_LIBS) -lpthread
