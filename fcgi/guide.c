/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/guide.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/harden.h"
#include "base/log.h"
#include "fcgi/egress_place.h"
#include "fcgi/limits.h"

#include <fcntl.h>
#include <limits.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

#define CALL(name, why) { SCMP_SYS(name), why, 0, { { 0, 0, 0 } } }

static const struct harden_call guide_calls[] = {
	{ SCMP_SYS(socket), "the gateway; Unix sockets only", 1, { { 0, UINT64_MAX, AF_UNIX } } },
	CALL(connect, "the gateway"),
	{ SCMP_SYS(openat), "ledgers; reading only", 1, { { 2, O_WRONLY | O_RDWR | O_CREAT | O_TRUNC, 0 } } },
	CALL(getdents64, "ledgers"),
};

static struct message_call call;

/* The proxy makes the directory, perhaps later than we begin. */
static int ledgers_open(const struct config *c)
{
	char path[PATH_MAX];

	return path_join(path, sizeof(path), c->state_dir, LEDGER_DIR, NULL) ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void answer(const struct config *c, const struct seal_key *key, const char *place, struct gateway_follow *ret, int *ret_fd)
{
	_cleanup_fd_ int dir = ledgers_open(c);
	struct fault f;
	enum rc rc;

	*ret = (struct gateway_follow){ .next = "" };
	snprintf(ret->place, sizeof(ret->place), "%s", place);
	rc = egress_place_next(key, dir, place, ret->next, ret_fd, &f);
	if (rc)
		*ret->next = '\0';
	if (rc && rc != RC_ABSENT)
		log_fault(LOG_LEVEL_WARN, &f, "the gateway asks");
}

/* Until the connection breaks. */
static enum rc serve(const struct config *c, const struct seal_key *key, int gateway, struct fault *ret_f)
{
	struct gateway_follow said = { .place = "" };
	struct gateway_place asked;
	_cleanup_fd_ int fd = -1;
	enum rc rc = RC_OK;

	while (!rc) {
		call.op = GATEWAY_FOLLOW;
		call.put = (message_put_fn *)gateway_follow_put;
		call.request = &said;
		call.send_fds = &fd;
		call.n_send_fds = fd >= 0 ? 1 : 0;
		call.get = (message_get_fn *)gateway_place_get;
		call.reply = &asked;
		rc = message_call(gateway, &call, UINT64_MAX, ret_f);
		close_fd(&fd);
		if (!rc && call.n_fds) {
			fds_close(call.fds, call.n_fds);
			rc = fault_set(ret_f, RC_PROTO, 0, "a descriptor that nobody wanted");
		}
		if (!rc)
			answer(c, key, asked.place, &said, &fd);
	}
	return rc;
}

int guide_main(const struct config *config)
{
	static const struct timespec pause = { .tv_nsec = GUIDE_RETRY_MS * 1000000L };
	char path[PATH_MAX];
	struct seal_key key;
	struct fault f = { 0 };
	sigset_t none;
	enum rc rc = path_join(path, sizeof(path), config->run_dir, "gateway.sock", &f);

	sigemptyset(&none);
	if (!rc && (sigprocmask(SIG_SETMASK, &none, NULL) < 0 || prctl(PR_SET_NAME, GUIDE_NAME) < 0))
		rc = fault_set(&f, RC_SYS, 0, "signals and name");
	if (!rc)
		rc = seal_key_load(&key, config->state_dir, SEAL_API_KEY_FILE, &f);
	if (!rc) {
		/* What libcrypto loads, it loads while that is allowed. */
		char first[GATEWAY_PLACE_MAX];

		rc = egress_place(&key, "a", "b", first, &f);
	}
	if (!rc)
		rc = harden_final(guide_calls, ARRAY_SIZE(guide_calls), &f);
	if (rc) {
		log_fault(LOG_LEVEL_ERROR, &f, "guide start");
		return 1;
	}
	for (;;) {
		_cleanup_fd_ int gateway = -1;

		/* The gateway is not there yet, or was started anew: tails are its, so nothing is lost. */
		if (!unix_connect(path, SOCK_SEQPACKET, &gateway, &f) && serve(config, &key, gateway, &f) == RC_PROTO)
			log_fault(LOG_LEVEL_WARN, &f, "guide");
		nanosleep(&pause, NULL);
	}
}
