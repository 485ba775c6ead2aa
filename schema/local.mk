noinst_LIBRARIES += libnbschema.a
libnbschema_a_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
libnbschema_a_SOURCES = schema/agent.h schema/broker.c schema/broker.h schema/gateway.c schema/gateway.h schema/ledger.h \
	schema/message.c schema/message.h schema/policy.c schema/policy.h schema/verdict.c schema/verdict.h
