# SPDX-License-Identifier: Apache-2.0
noinst_LIBRARIES += libnbdeploy.a
libnbdeploy_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbdeploy_a_SOURCES = fcgi/deploy/bundle.c fcgi/deploy/bundle.h
DEPLOY_LIBS = libnbdeploy.a
DEPLOY_SYSLIBS = $(ARCHIVE_LIBS) $(OPENSSL_LIBS)

check_PROGRAMS += tests/unit/test_bundle
tests_unit_test_bundle_SOURCES = tests/unit/test_bundle.c
tests_unit_test_bundle_LDADD = libnbdeploy.a $(UNIT_LIBS) $(DEPLOY_SYSLIBS)

check_PROGRAMS += tests/fuzz/fuzz_bundle
tests_fuzz_fuzz_bundle_SOURCES = tests/fuzz/fuzz_bundle.c $(FUZZ_DRIVER)
tests_fuzz_fuzz_bundle_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
tests_fuzz_fuzz_bundle_LDADD = libnbdeploy.a $(UNIT_LIBS) $(DEPLOY_SYSLIBS)
