# SPDX-License-Identifier: Apache-2.0
sbin_PROGRAMS += nestbox-runner
nestbox_runner_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
nestbox_runner_SOURCES = fcgi/runner/capture.c fcgi/runner/capture.h fcgi/runner/gc.c fcgi/runner/gc.h fcgi/runner/job.c \
	fcgi/runner/job.h fcgi/runner/keep.c fcgi/runner/keep.h fcgi/runner/limits.h fcgi/runner/link.c fcgi/runner/link.h \
	fcgi/runner/main.c fcgi/runner/names.c fcgi/runner/names.h fcgi/runner/progress.c fcgi/runner/progress.h \
	fcgi/runner/purge.c fcgi/runner/purge.h fcgi/runner/server.c fcgi/runner/server.h fcgi/runner/sleep.c \
	fcgi/runner/sleep.h fcgi/runner/watch.c fcgi/runner/watch.h
nodist_nestbox_runner_SOURCES = fcgi/runner/start_sh.h fcgi/runner/static_js.h
nestbox_runner_LDADD = $(DEPLOY_LIBS) $(FCGI_BASE_LIBS) $(DEPLOY_SYSLIBS) $(HARDEN_LIBS)
dist_man_MANS += doc/man/nestbox-runner.8 doc/man/nestbox-cert.8
dist_sbin_SCRIPTS = nginx/nestbox-cert

nestboxschema_DATA += schema/migrations/003-apps.sql
EXTRA_DIST += schema/migrations/003-apps.sql

# The server of static apps, and what starts the others, as strings.
fcgi/runner/nestbox_runner-server.$(OBJEXT): fcgi/runner/static_js.h fcgi/runner/start_sh.h
CLEANFILES += fcgi/runner/static_js.h fcgi/runner/start_sh.h
EXTRA_DIST += fcgi/runner/static.js fcgi/runner/start.sh tests/alone/app-start.sh
AS_STRING = sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/"/' -e 's/$$/\\n"/'
fcgi/runner/static_js.h: $(srcdir)/fcgi/runner/static.js
	$(AM_V_GEN)mkdir -p fcgi/runner && { echo 'static const char static_js[] ='; $(AS_STRING) $(srcdir)/fcgi/runner/static.js; \
	echo ';'; } > $@.new && mv $@.new $@
fcgi/runner/start_sh.h: $(srcdir)/fcgi/runner/start.sh
	$(AM_V_GEN)mkdir -p fcgi/runner && { echo 'static const char start_sh[] ='; $(AS_STRING) $(srcdir)/fcgi/runner/start.sh; \
	echo ';'; } > $@.new && mv $@.new $@

check_PROGRAMS += tests/unit/test_runner
tests_unit_test_runner_SOURCES = tests/unit/test_runner.c fcgi/runner/keep.c fcgi/runner/keep.h fcgi/runner/link.c fcgi/runner/link.h
tests_unit_test_runner_LDADD = $(FCGI_BASE_LIBS)
