# SPDX-License-Identifier: Apache-2.0
sbin_PROGRAMS += nestbox-gateway
nestbox_gateway_CFLAGS = $(AM_CFLAGS) $(NB_PIE_CFLAGS)
GATEWAY_SOURCES = fcgi/gateway/acceptor.c fcgi/gateway/acceptor.h fcgi/gateway/answer.c fcgi/gateway/answer.h \
	fcgi/gateway/control.c fcgi/gateway/control.h fcgi/gateway/expose.c fcgi/gateway/expose.h \
	fcgi/gateway/follow.c fcgi/gateway/follow.h fcgi/gateway/gateway.h fcgi/gateway/head.c fcgi/gateway/head.h \
	fcgi/gateway/limits.h fcgi/gateway/link.c fcgi/gateway/link.h fcgi/gateway/relay.c fcgi/gateway/relay.h \
	fcgi/gateway/stream.c fcgi/gateway/stream.h fcgi/gateway/ticket.c fcgi/gateway/ticket.h fcgi/gateway/visit.c
nestbox_gateway_SOURCES = fcgi/gateway/main.c $(GATEWAY_SOURCES)
nestbox_gateway_LDADD = libnbschema.a libnbbase.a $(JSONC_LIBS) $(OPENSSL_LIBS) $(HARDEN_LIBS)
