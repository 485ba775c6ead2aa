# SPDX-License-Identifier: Apache-2.0
noinst_LIBRARIES += libnbnet.a
libnbnet_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbnet_a_SOURCES = vmm/net/cut.c vmm/net/inside.c vmm/net/inside.h vmm/net/limits.h vmm/net/net.c vmm/net/net.h
# What a program with libnbnet.a links besides.
NET_LIBS = $(NFTABLES_LIBS)

check_PROGRAMS += tests/it/test_net
tests_it_test_net_SOURCES = tests/it/test_net.c tests/it/guestns.c tests/it/guestns.h
tests_it_test_net_LDADD = libnbnet.a $(UNIT_LIBS) $(NET_LIBS)
