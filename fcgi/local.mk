# SPDX-License-Identifier: Apache-2.0
# What the workers, the tools and the runner share: database, ids, sealing, JSON, rows.
noinst_LIBRARIES += libnbfcgi.a libnbapi.a
libnbfcgi_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbfcgi_a_SOURCES = fcgi/app_log.h fcgi/db.c fcgi/db.h fcgi/domains.c fcgi/domains.h fcgi/env.c fcgi/env.h \
	fcgi/env_effective.c fcgi/ids.c fcgi/ids.h fcgi/json.c fcgi/json.h fcgi/limits.h fcgi/peer.c fcgi/peer.h \
	fcgi/quota.c fcgi/quota.h fcgi/revision_store.c fcgi/revisions.h fcgi/sandbox_store.c fcgi/sandbox_store.h fcgi/seal.c fcgi/seal.h fcgi/starts.c fcgi/starts.h
FCGI_BASE_LIBS = libnbfcgi.a libnbschema.a libnbbase.a $(JSONC_LIBS) $(SQLITE_LIBS) $(OPENSSL_LIBS)

# What decides about requests; without FastCGI, so that tests can call it.
libnbapi_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbapi_a_SOURCES = fcgi/app_config.c fcgi/app_config.h fcgi/app_domains.c fcgi/app_logs.c fcgi/apps.c fcgi/apps.h fcgi/auth.c fcgi/auth.h \
	fcgi/deploy.c fcgi/deploy_tree.c fcgi/deploy_tree.h fcgi/egress.c fcgi/egress_config.c fcgi/egress_config.h \
	fcgi/egress_evaluate.c fcgi/egress_judge.c fcgi/egress_judge.h fcgi/egress_learn.c fcgi/egress_learn.h fcgi/egress_place.c \
	fcgi/egress_place.h fcgi/egress_policy.c \
	fcgi/egress_scan.c fcgi/egress_scan.h fcgi/errors.c fcgi/errors.h fcgi/expose.c fcgi/guest_test.c \
	fcgi/guest_test.h fcgi/handlers.h \
	fcgi/layers.c fcgi/page.c fcgi/page.h fcgi/peers.c fcgi/peers.h fcgi/policy_text.c fcgi/policy_text.h fcgi/request.c fcgi/request.h fcgi/revision_json.c \
	fcgi/revision_json.h fcgi/revisions.c fcgi/router.c fcgi/router.h fcgi/routes.c fcgi/sandbox_config.c \
	fcgi/sandbox_capture.c fcgi/sandbox_capture.h fcgi/sandbox_config.h fcgi/sandbox_fork.c fcgi/sandbox_list.c fcgi/sandbox_policy.c fcgi/sandboxes.c fcgi/sandboxes.h \
	fcgi/pool.c fcgi/pool.h fcgi/volume_use.c fcgi/volumes.c fcgi/volumes.h
API_LIBS = libnbapi.a libnbdeploy.a $(FCGI_BASE_LIBS) $(ARCHIVE_LIBS)

sbin_PROGRAMS += nestbox-api
nestbox_api_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
nestbox_api_SOURCES = fcgi/guide.c fcgi/guide.h fcgi/main.c fcgi/wipe.c fcgi/worker.c fcgi/worker.h
nestbox_api_LDADD = $(API_LIBS) $(FCGI_LIBS) $(HARDEN_LIBS)

sbin_PROGRAMS += nestboxadm
nestboxadm_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
nestboxadm_SOURCES = fcgi/adm.c fcgi/adm.h fcgi/adm_egress.c
nestboxadm_LDADD = $(API_LIBS) $(HARDEN_LIBS)

dist_man_MANS += doc/man/nestbox-api.8 doc/man/nestboxadm.8

nestboxschema_DATA += schema/migrations/001-initial.sql
EXTRA_DIST += schema/migrations/001-initial.sql
nestboxschema_DATA += schema/migrations/004-fork.sql
EXTRA_DIST += schema/migrations/004-fork.sql
nestboxschema_DATA += schema/migrations/011-starts.sql
EXTRA_DIST += schema/migrations/011-starts.sql
nestboxschema_DATA += schema/migrations/012-instances-by-app.sql
EXTRA_DIST += schema/migrations/012-instances-by-app.sql
nestboxschema_DATA += schema/migrations/010-promotions-captures.sql
EXTRA_DIST += schema/migrations/010-promotions-captures.sql

check_PROGRAMS += tests/unit/test_db
tests_unit_test_db_SOURCES = tests/unit/test_db.c
tests_unit_test_db_LDADD = $(FCGI_BASE_LIBS)

noinst_PROGRAMS += tests/it/api_fakes
tests_it_api_fakes_SOURCES = tests/it/api_fakes.c
tests_it_api_fakes_LDADD = libnbschema.a libnbbase.a

check_PROGRAMS += tests/unit/test_api
tests_unit_test_api_SOURCES = tests/unit/test_api.c
tests_unit_test_api_LDADD = $(API_LIBS)

check_PROGRAMS += tests/unit/test_pool
tests_unit_test_pool_SOURCES = tests/unit/test_pool.c fcgi/pool.c fcgi/pool.h
tests_unit_test_pool_LDADD = libnbbase.a

check_PROGRAMS += tests/unit/test_policy_text
tests_unit_test_policy_text_SOURCES = tests/unit/test_policy_text.c
tests_unit_test_policy_text_LDADD = $(API_LIBS)

check_PROGRAMS += tests/fuzz/fuzz_answer
tests_fuzz_fuzz_answer_SOURCES = tests/fuzz/fuzz_answer.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_answer_LDADD = $(FCGI_BASE_LIBS)
tests_fuzz_fuzz_answer_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
check_PROGRAMS += tests/fuzz/fuzz_config
tests_fuzz_fuzz_config_SOURCES = tests/fuzz/fuzz_config.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_config_LDADD = $(API_LIBS)
tests_fuzz_fuzz_config_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
