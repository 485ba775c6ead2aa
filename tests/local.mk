include $(srcdir)/tests/fuzz/local.mk
EXTRA_DIST += tests/lib/check.h
UNIT_LIBS = libnbschema.a libnbbase.a

check_PROGRAMS += tests/unit/test_base
tests_unit_test_base_SOURCES = tests/unit/test_base.c
tests_unit_test_base_LDADD = $(UNIT_LIBS)

noinst_PROGRAMS += tests/perf/direct
tests_perf_direct_SOURCES = tests/perf/direct.c
tests_perf_direct_LDADD = $(UNIT_LIBS)
