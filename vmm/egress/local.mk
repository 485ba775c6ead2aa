# SPDX-License-Identifier: Apache-2.0
# What the tests and fuzz targets need without the daemon around it.
noinst_LIBRARIES += libnbegress.a
libnbegress_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS) $(NGHTTP2_CFLAGS)
libnbegress_a_SOURCES = vmm/egress/ca.c vmm/egress/ca.h \
	vmm/egress/dns.c vmm/egress/dns.h \
	vmm/egress/hello.c vmm/egress/hello.h vmm/egress/ledger_files.c vmm/egress/ledger_files.h \
	vmm/egress/limits.h vmm/egress/meter.c vmm/egress/meter.h vmm/egress/names.c vmm/egress/names.h \
	vmm/egress/h2.c vmm/egress/h2.h vmm/egress/h2_fields.c vmm/egress/h2_fields.h \
	vmm/egress/h2_stream.c vmm/egress/h2_stream.h \
	vmm/egress/http1.c vmm/egress/http1.h vmm/egress/judge.c vmm/egress/judge.h vmm/egress/rewrite.c \
	vmm/egress/rewrite.h vmm/egress/secrets.c vmm/egress/secrets.h vmm/egress/ws.c vmm/egress/ws.h

sbin_PROGRAMS += nestbox-egress
nestbox_egress_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS) $(CARES_CFLAGS)
nestbox_egress_SOURCES = vmm/egress/attach.c vmm/egress/attach.h vmm/egress/conn.c vmm/egress/conn.h vmm/egress/dnsd.c \
	vmm/egress/intercept.c vmm/egress/intercept.h vmm/egress/intercept_http1.c vmm/egress/intercept_state.h vmm/egress/tls.c vmm/egress/tls.h \
	vmm/egress/ledger.c vmm/egress/ledger.h vmm/egress/main.c vmm/egress/refuse.c vmm/egress/relay.c \
	vmm/egress/resolve.c vmm/egress/resolve.h vmm/egress/sandbox.c vmm/egress/sandbox.h vmm/egress/tenant.c vmm/egress/tenant.h
nestbox_egress_LDADD = libnbegress.a libnbschema.a libnbbase.a $(HARDEN_LIBS) $(JSONC_LIBS) $(CARES_LIBS) $(NGHTTP2_LIBS) \
	$(OPENSSL_LIBS) -lpthread
EXTRA_DIST += doc/egress.md
dist_man_MANS += doc/man/nestbox-egress.8

check_PROGRAMS += tests/it/test_egress
tests_it_test_egress_SOURCES = tests/it/test_egress.c tests/it/egressbed.c tests/it/egressbed.h tests/it/guestns.c \
	tests/it/guestns.h tests/lib/hello.h
tests_it_test_egress_LDADD = libnbegress.a libnbnet.a $(UNIT_LIBS) $(NET_LIBS) $(OPENSSL_LIBS) -lpthread

EGRESS_UNIT_LIBS = libnbegress.a $(UNIT_LIBS) $(NGHTTP2_LIBS) $(OPENSSL_LIBS)
check_PROGRAMS += tests/it/test_intercept
tests_it_test_intercept_SOURCES = tests/it/test_intercept.c tests/it/egressbed.c tests/it/egressbed.h tests/it/guestns.c \
	tests/it/guestns.h tests/lib/seal.h
tests_it_test_intercept_LDADD = libnbegress.a libnbnet.a $(UNIT_LIBS) $(NET_LIBS) $(OPENSSL_LIBS) -lpthread

check_PROGRAMS += tests/unit/test_secrets tests/unit/test_http1 tests/fuzz/fuzz_http1
tests_unit_test_secrets_SOURCES = tests/unit/test_secrets.c tests/lib/seal.h
tests_unit_test_secrets_LDADD = $(EGRESS_UNIT_LIBS)
tests_unit_test_http1_SOURCES = tests/unit/test_http1.c
tests_unit_test_http1_LDADD = $(EGRESS_UNIT_LIBS)
tests_fuzz_fuzz_http1_SOURCES = tests/fuzz/fuzz_http1.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_http1_LDADD = $(EGRESS_UNIT_LIBS)
tests_fuzz_fuzz_http1_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)

check_PROGRAMS += tests/unit/test_ledger
tests_unit_test_ledger_SOURCES = tests/unit/test_ledger.c vmm/egress/ledger.c vmm/egress/ledger.h
tests_unit_test_ledger_LDADD = libnbegress.a $(API_LIBS)
tests_unit_test_ledger_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=now_ms,--wrap=pthread_cond_timedwait

check_PROGRAMS += tests/unit/test_conn
tests_unit_test_conn_CFLAGS = $(AM_CFLAGS)
tests_unit_test_conn_SOURCES = tests/unit/test_conn.c tests/lib/hello.h vmm/egress/attach.c vmm/egress/attach.h vmm/egress/conn.c \
	vmm/egress/conn.h vmm/egress/dnsd.c vmm/egress/intercept.c vmm/egress/intercept.h vmm/egress/intercept_http1.c \
	vmm/egress/intercept_state.h vmm/egress/refuse.c vmm/egress/relay.c vmm/egress/sandbox.c vmm/egress/sandbox.h \
	vmm/egress/tenant.c vmm/egress/tenant.h vmm/egress/tls.c vmm/egress/tls.h
tests_unit_test_conn_LDADD = $(EGRESS_UNIT_LIBS)
tests_unit_test_conn_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=now_ms,--wrap=getsockopt,--wrap=accept4,--wrap=connect

check_PROGRAMS += tests/unit/test_resolve
tests_unit_test_resolve_CFLAGS = $(AM_CFLAGS) $(CARES_CFLAGS)
tests_unit_test_resolve_SOURCES = tests/unit/test_resolve.c vmm/egress/resolve.c vmm/egress/resolve.h
tests_unit_test_resolve_LDADD = $(UNIT_LIBS) $(CARES_LIBS)

check_PROGRAMS += tests/unit/test_policy tests/unit/test_dns tests/unit/test_hello
tests_unit_test_policy_SOURCES = tests/unit/test_policy.c
tests_unit_test_policy_LDADD = $(EGRESS_UNIT_LIBS)
tests_unit_test_dns_SOURCES = tests/unit/test_dns.c
tests_unit_test_dns_LDADD = $(EGRESS_UNIT_LIBS)
tests_unit_test_hello_SOURCES = tests/unit/test_hello.c tests/lib/hello.h
tests_unit_test_hello_LDADD = $(EGRESS_UNIT_LIBS)

check_PROGRAMS += tests/fuzz/fuzz_dns tests/fuzz/fuzz_clienthello tests/fuzz/fuzz_policy
tests_fuzz_fuzz_dns_SOURCES = tests/fuzz/fuzz_dns.c vmm/egress/dnsd.c vmm/egress/sandbox.h $(FUZZ_DRIVER)
tests_fuzz_fuzz_dns_LDADD = $(EGRESS_UNIT_LIBS) -lresolv
tests_fuzz_fuzz_dns_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK) -Wl,--wrap=accept4
tests_fuzz_fuzz_clienthello_SOURCES = tests/fuzz/fuzz_clienthello.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_clienthello_LDADD = $(EGRESS_UNIT_LIBS)
tests_fuzz_fuzz_clienthello_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
tests_fuzz_fuzz_policy_SOURCES = tests/fuzz/fuzz_policy.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_policy_LDADD = $(EGRESS_UNIT_LIBS)
tests_fuzz_fuzz_policy_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
check_PROGRAMS += tests/fuzz/fuzz_rules
tests_fuzz_fuzz_rules_SOURCES = tests/fuzz/fuzz_rules.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_rules_LDADD = $(EGRESS_UNIT_LIBS)
tests_fuzz_fuzz_rules_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
check_PROGRAMS += tests/unit/test_h2 tests/fuzz/fuzz_h2
tests_unit_test_h2_SOURCES = tests/unit/test_h2.c tests/lib/h2_peer.h tests/lib/seal.h
tests_unit_test_h2_LDADD = $(EGRESS_UNIT_LIBS)
tests_fuzz_fuzz_h2_SOURCES = tests/fuzz/fuzz_h2.c tests/lib/h2_peer.h $(FUZZ_DRIVER)
tests_fuzz_fuzz_h2_LDADD = $(EGRESS_UNIT_LIBS)
tests_fuzz_fuzz_h2_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
check_PROGRAMS += tests/it/test_h2_real
tests_it_test_h2_real_SOURCES = tests/it/test_h2_real.c tests/it/egressbed.c tests/it/egressbed.h tests/it/guestns.c \
	tests/it/guestns.h tests/lib/seal.h
tests_it_test_h2_real_LDADD = libnbegress.a libnbnet.a $(UNIT_LIBS) $(NET_LIBS) $(OPENSSL_LIBS) -lpthread
EXTRA_DIST += tests/it/lib-h2_server.mjs tests/it/lib-h2_client.mjs
check_PROGRAMS += tests/unit/test_meter
tests_unit_test_meter_SOURCES = tests/unit/test_meter.c
tests_unit_test_meter_LDADD = $(EGRESS_UNIT_LIBS)
check_PROGRAMS += tests/unit/test_egress_ws tests/fuzz/fuzz_egress_ws
tests_unit_test_egress_ws_SOURCES = tests/unit/test_egress_ws.c tests/lib/seal.h
tests_unit_test_egress_ws_LDADD = $(EGRESS_UNIT_LIBS)
tests_fuzz_fuzz_egress_ws_SOURCES = tests/fuzz/fuzz_egress_ws.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_egress_ws_LDADD = $(EGRESS_UNIT_LIBS)
tests_fuzz_fuzz_egress_ws_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
noinst_PROGRAMS += tests/perf/egress
tests_perf_egress_SOURCES = tests/perf/egress.c tests/it/egressbed.c tests/it/egressbed.h tests/it/guestns.c tests/it/guestns.h \
	tests/lib/seal.h
tests_perf_egress_LDADD = libnbegress.a libnbnet.a $(UNIT_LIBS) $(NET_LIBS) $(OPENSSL_LIBS) -lpthread
EXTRA_DIST += tests/perf/egress.sh
