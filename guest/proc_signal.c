/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/proc.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define SIGNAL_TABLE(X)                                                                                                \
	X(HUP) X(INT) X(QUIT) X(ILL) X(TRAP) X(ABRT) X(BUS) X(FPE) X(KILL) X(USR1) X(SEGV) X(USR2) X(PIPE) X(ALRM) X(TERM) \
	X(STKFLT) X(CHLD) X(CONT) X(STOP) X(TSTP) X(TTIN) X(TTOU) X(URG) X(XCPU) X(XFSZ) X(VTALRM) X(PROF) X(WINCH) \
	X(IO) X(PWR) X(SYS)

static const struct {
	const char *name;
	int number;
} signals[] = {
#define X(n) { "SIG" #n, SIG##n },
	SIGNAL_TABLE(X)
#undef X
	{ "SIGIOT", SIGIOT },
	{ "SIGPOLL", SIGPOLL },
	{ "SIGUNUSED", SIGSYS },
	{ "SIGINFO", SIGPWR },
};

int signal_from_name(const char *name)
{
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (!strcmp(signals[i].name, name))
			return signals[i].number;
	return -1;
}

const char *signal_name(int signal)
{
	static char other[16];

	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (signals[i].number == signal)
			return signals[i].name;
	snprintf(other, sizeof(other), "SIG%d", signal);
	return other;
}
