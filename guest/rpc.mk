# SPDX-License-Identifier: Apache-2.0
# The session process; a library because the agent links it statically and the tests link it too.
noinst_LIBRARIES += libnbsession.a
libnbsession_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbsession_a_SOURCES = guest/deno.c guest/deno.h guest/deno_repl.c guest/deno_warm.c guest/deno_warm.h guest/http.h guest/http_fetch.c guest/http_head.c guest/http_relay.c \
	guest/http_url.c guest/proc.c guest/proc.h guest/proc_net.c guest/proc_signal.c guest/proc_spawn.c guest/rpc.h \
	guest/rpc_call.c guest/rpc_conn.c guest/rpc_fs.c guest/rpc_fs.h guest/rpc_jobs.c guest/rpc_jobs.h \
	guest/rpc_json.c guest/rpc_json.h guest/rpc_limits.h guest/rpc_methods.c guest/rpc_spill.c guest/rpc_spill.h guest/rpc_stream.c guest/session.c \
	guest/session.h guest/vscode.c guest/vscode.h guest/ws.c guest/ws.h
nodist_libnbsession_a_SOURCES = guest/deno_repl_js.h
# What a program that uses libnbsession.a links besides.
SESSION_LIBS = libnbsession.a $(FS_LIBS)

guest/libnbsession_a-deno_repl.$(OBJEXT): guest/deno_repl_js.h
CLEANFILES += guest/deno_repl_js.h
EXTRA_DIST += guest/deno_repl.js
guest/deno_repl_js.h: $(srcdir)/guest/deno_repl.js
	$(AM_V_GEN)mkdir -p guest && { echo 'static const char deno_repl_js[] ='; \
	sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/"/' -e 's/$$/\\n"/' $(srcdir)/guest/deno_repl.js; echo ';'; } > $@.new && mv $@.new $@

noinst_PROGRAMS += nestbox-session-test
nestbox_session_test_SOURCES = guest/session_test_main.c
nestbox_session_test_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
nestbox_session_test_LDADD = $(SESSION_LIBS)

check_PROGRAMS += tests/unit/test_ws tests/unit/test_rpc tests/unit/test_http_guest tests/unit/test_session
tests_unit_test_session_SOURCES = tests/unit/test_session.c
tests_unit_test_session_LDADD = $(SESSION_LIBS)
tests_unit_test_ws_SOURCES = tests/unit/test_ws.c
tests_unit_test_ws_LDADD = $(SESSION_LIBS)
tests_unit_test_rpc_SOURCES = tests/unit/test_rpc.c tests/lib/rpc_bed.h
tests_unit_test_rpc_LDADD = $(SESSION_LIBS)
tests_unit_test_http_guest_SOURCES = tests/unit/test_http_guest.c
tests_unit_test_http_guest_LDADD = $(SESSION_LIBS)

check_PROGRAMS += tests/fuzz/fuzz_ws tests/fuzz/fuzz_rpc tests/fuzz/fuzz_http_guest
tests_fuzz_fuzz_ws_SOURCES = tests/fuzz/fuzz_ws.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_ws_LDADD = $(SESSION_LIBS)
tests_fuzz_fuzz_ws_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
tests_fuzz_fuzz_rpc_SOURCES = tests/fuzz/fuzz_rpc.c tests/lib/rpc_bed.h $(FUZZ_DRIVER)
tests_fuzz_fuzz_rpc_LDADD = $(SESSION_LIBS)
tests_fuzz_fuzz_rpc_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
tests_fuzz_fuzz_http_guest_SOURCES = tests/fuzz/fuzz_http_guest.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_http_guest_LDADD = $(SESSION_LIBS)
tests_fuzz_fuzz_http_guest_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
EXTRA_DIST += doc/rpc.md tests/alone/session.sh tests/lib/ws-bridge.mjs tests/sdk/lib.mjs tests/sdk/process.mjs tests/sdk/deno.mjs tests/sdk/fetch.mjs tests/sdk/hostile.mjs \
	tests/sdk/sandbox.mjs tests/sdk/shell.mjs tests/sdk/apps.mjs tests/sdk/readme.mjs tests/sdk/disks.mjs tests/it/lib-process-differential.mjs tests/alone/process-differential.sh tests/lib/cover.mjs tests/lib/compat.mjs
