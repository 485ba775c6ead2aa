# SPDX-License-Identifier: Apache-2.0
# What the workers, the tools and the runner share: database, ids, sealing, JSON.
noinst_LIBRARIES += libnbfcgi.a
libnbfcgi_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbfcgi_a_SOURCES = fcgi/db.c fcgi/db.h fcgi/limits.h
FCGI_BASE_LIBS = libnbfcgi.a libnbschema.a libnbbase.a $(JSONC_LIBS) $(SQLITE_LIBS) $(OPENSSL_LIBS)

nestboxschema_DATA += schema/migrations/001-initial.sql
EXTRA_DIST += schema/migrations/001-initial.sql

check_PROGRAMS += tests/unit/test_db
tests_unit_test_db_SOURCES = tests/unit/test_db.c
tests_unit_test_db_LDADD = $(FCGI_BASE_LIBS)
