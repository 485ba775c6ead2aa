noinst_LIBRARIES += libnbbase.a
libnbbase_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbbase_a_SOURCES = base/address.c base/address.h base/buf.c base/buf.h base/cleanup.h base/config.c base/config.h base/fault.c base/fault.h \
	base/fd.c base/fd.h base/harden.c base/harden.h base/hex.c base/hex.h base/log.c base/log.h base/loop.c base/loop.h base/share.h base/wire.c base/wire.h
# What a program that calls harden_*() links besides.
HARDEN_LIBS = $(SECCOMP_LIBS) $(CAPNG_LIBS)
