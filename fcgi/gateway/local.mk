# SPDX-License-Identifier: Apache-2.0
sbin_PROGRAMS += nestbox-gateway
nestbox_gateway_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
GATEWAY_SOURCES = fcgi/gateway/acceptor.c fcgi/gateway/acceptor.h fcgi/gateway/answer.c fcgi/gateway/answer.h \
	fcgi/gateway/control.c fcgi/gateway/control.h fcgi/gateway/expose.c fcgi/gateway/expose.h \
	fcgi/gateway/follow.c fcgi/gateway/follow.h fcgi/gateway/gateway.h fcgi/gateway/head.c fcgi/gateway/head.h \
	fcgi/gateway/limits.h fcgi/gateway/link.c fcgi/gateway/link.h fcgi/gateway/relay.c fcgi/gateway/relay.h \
	fcgi/gateway/stream.c fcgi/gateway/stream.h fcgi/gateway/ticket.c fcgi/gateway/ticket.h fcgi/gateway/visit.c
nestbox_gateway_SOURCES = fcgi/gateway/main.c $(GATEWAY_SOURCES)
nestbox_gateway_LDADD = libnbschema.a libnbbase.a $(JSONC_LIBS) $(OPENSSL_LIBS) $(HARDEN_LIBS)

dist_man_MANS += doc/man/nestbox-gateway.8
EXTRA_DIST += doc/gateway.md nginx/nginx.conf.in tests/alone/gateway.mjs tests/it/deploy.mjs

check_PROGRAMS += tests/unit/test_head tests/unit/test_ticket tests/unit/test_relay tests/fuzz/fuzz_head
tests_unit_test_head_SOURCES = tests/unit/test_head.c fcgi/gateway/head.c
tests_unit_test_head_LDADD = libnbbase.a $(OPENSSL_LIBS)
tests_unit_test_ticket_SOURCES = tests/unit/test_ticket.c fcgi/gateway/ticket.c
tests_unit_test_ticket_LDADD = libnbschema.a libnbbase.a $(OPENSSL_LIBS)
tests_unit_test_relay_SOURCES = tests/unit/test_relay.c fcgi/gateway/relay.c
tests_unit_test_relay_LDADD = libnbbase.a
tests_fuzz_fuzz_head_SOURCES = tests/fuzz/fuzz_head.c fcgi/gateway/head.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_head_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
tests_fuzz_fuzz_head_LDADD = libnbbase.a $(OPENSSL_LIBS)

# What tests/alone/gateway drives.
noinst_PROGRAMS += tests/it/gateway_bed
tests_it_gateway_bed_SOURCES = tests/it/gateway_bed.c
tests_it_gateway_bed_LDADD = libnbschema.a libnbbase.a $(FCGI_LIBS) -lpthread
