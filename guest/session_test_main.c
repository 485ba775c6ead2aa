/* SPDX-License-Identifier: Apache-2.0 */
/* The session process alone, for tests on a plain host: `nestbox-session-test /path.sock`, ends with its standard input. */
#include "guest/session.h"

#include <stdio.h>

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: %s /path.sock\n", argv[0]);
		return 2;
	}
	return session_listen(argv[1]);
}
