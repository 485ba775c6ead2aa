/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/ssh/gate.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/hex.h"
#include "fcgi/ssh/frames.h"
#include "fcgi/ssh/limits.h"

#include <openssl/sha.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

static enum rc ask(int gate, const char *question, size_t n, int fds[FD_PASS_MAX], size_t *ret_n_fds, struct fault *ret_f)
{
	uint8_t answer[2];
	size_t got, n_fds = 0;
	enum rc rc = packet_send(gate, question, n, NULL, 0, ret_f);

	/* The daemon bounds its own answers; this bounds a daemon that hangs. */
	if (!rc)
		rc = fd_wait(gate, POLLIN, now_ms() + 2 * SSH_OPEN_MS, ret_f);
	if (!rc)
		rc = packet_recv(gate, answer, sizeof(answer), &got, fds, &n_fds, ret_f);
	if (rc)
		return rc;
	if (got != 2 || answer[0] != (uint8_t)question[0]) {
		fds_close(fds, n_fds);
		return fault_set(ret_f, got ? RC_PROTO : RC_CLOSED, 0, "the daemon is gone");
	}
	if (answer[1]) {
		fds_close(fds, n_fds);
		return fault_set(ret_f, (enum rc)-answer[1], 0, "refused");
	}
	*ret_n_fds = n_fds;
	return RC_OK;
}

enum rc gate_login(int gate, const char *name, struct fault *ret_f)
{
	char question[1 + 2 * SHA256_DIGEST_LENGTH + 1] = { GATE_LOGIN };
	uint8_t hash[SHA256_DIGEST_LENGTH];
	int fds[FD_PASS_MAX];
	size_t n_fds;
	enum rc rc;

	SHA256((const uint8_t *)name, strlen(name), hash);
	hex_of(question + 1, hash, sizeof(hash));
	rc = ask(gate, question, 1 + GATE_KEY, fds, &n_fds, ret_f);
	if (!rc && n_fds) {
		fds_close(fds, n_fds);
		return fault_set(ret_f, RC_PROTO, 0, "unexpected descriptors");
	}
	return rc;
}

enum rc gate_open(int gate, int *ret_fd, struct fault *ret_f)
{
	const char question = GATE_OPEN;
	int fds[FD_PASS_MAX];
	size_t n_fds;
	enum rc rc = ask(gate, &question, 1, fds, &n_fds, ret_f);

	if (!rc && n_fds != 1) {
		fds_close(fds, n_fds);
		return fault_set(ret_f, RC_PROTO, 0, "no descriptor came");
	}
	if (!rc)
		*ret_fd = fds[0];
	return rc;
}

enum rc gate_service(int gate, const char *line, int *ret_fd, struct fault *ret_f)
{
	_cleanup_fd_ int fd = -1;
	char answer[SSH_ANSWER_MAX];
	enum rc rc = gate_open(gate, &fd, ret_f);

	if (!rc)
		rc = fd_write_all(fd, line, strlen(line), now_ms() + SSH_OPEN_MS, ret_f);
	if (!rc)
		rc = fd_write_all(fd, "\n", 1, now_ms() + SSH_OPEN_MS, ret_f);
	if (!rc)
		rc = fd_read_line(fd, answer, sizeof(answer), now_ms() + SSH_OPEN_MS, ret_f);
	if (!rc)
		rc = frame_answer_parse(answer, ret_f);
	if (!rc)
		rc = fd_nonblock(fd, ret_f);
	if (!rc)
		*ret_fd = take_fd(&fd);
	return rc;
}
