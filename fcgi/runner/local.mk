# SPDX-License-Identifier: Apache-2.0
sbin_PROGRAMS += nestbox-runner
nestbox_runner_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
nestbox_runner_SOURCES = fcgi/runner/job.c fcgi/runner/job.h fcgi/runner/keep.c fcgi/runner/keep.h fcgi/runner/limits.h \
	fcgi/runner/link.c fcgi/runner/link.h fcgi/runner/main.c fcgi/runner/progress.c fcgi/runner/progress.h \
	fcgi/runner/purge.c fcgi/runner/purge.h \
	fcgi/runner/watch.c fcgi/runner/watch.h
nestbox_runner_LDADD = $(DEPLOY_LIBS) $(FCGI_BASE_LIBS) $(DEPLOY_SYSLIBS) $(HARDEN_LIBS)
dist_man_MANS += doc/man/nestbox-runner.8
