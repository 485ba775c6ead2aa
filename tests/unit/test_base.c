/* SPDX-License-Identifier: Apache-2.0 */
#include "base/address.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/config.h"
#include "base/fd.h"
#include "base/loop.h"
#include "base/wire.h"
#include "schema/broker.h"
#include "tests/lib/check.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* Random puts and consumes against a plain array. */
TEST(buf_model)
{
	struct buf b = BUF_INIT(5000);
	static uint8_t model[5000];
	size_t n = 0;
	unsigned int seed = 1;

	for (int i = 0; i < 20000; i++) {
		size_t k = (size_t)rand_r(&seed) % 700;

		if (rand_r(&seed) & 1) {
			uint8_t data[700];
			enum rc rc;

			memset(data, i & 255, k);
			rc = buf_put(&b, data, k);
			CHECK_EQ(rc, n + k > 5000 ? RC_LIMIT : RC_OK);
			if (!rc) {
				memcpy(model + n, data, k);
				n += k;
			}
		} else {
			k = MIN_OF(k, n);
			buf_consume(&b, k);
			memmove(model, model + k, n - k);
			n -= k;
		}
		REQUIRE(buf_len(&b) == n && (!n || !memcmp(buf_data(&b), model, n)));
	}
	buf_free(&b);
}

TEST(wire_roundtrip_and_sticky_error)
{
	uint8_t mem[64];
	char s[8];
	struct wire w;

	wire_init(&w, mem, sizeof(mem));
	wire_put_u8(&w, 7);
	wire_put_u64(&w, 0x1122334455667788);
	wire_put_str(&w, "hello");
	REQUIRE(wire_ok(&w));
	size_t n = wire_len(&w);

	wire_init(&w, mem, n);
	CHECK_EQ(wire_get_u8(&w), 7);
	CHECK(wire_get_u64(&w) == 0x1122334455667788);
	wire_get_str(&w, s, sizeof(s));
	CHECK_STR(s, "hello");
	CHECK(wire_done(&w));

	for (size_t cut = 0; cut < n; cut++) {
		wire_init(&w, mem, cut);
		wire_get_u8(&w);
		wire_get_u64(&w);
		wire_get_str(&w, s, sizeof(s));
		CHECK(!wire_done(&w));
	}
	wire_init(&w, mem, n);
	wire_get_u8(&w);
	wire_get_u64(&w);
	wire_get_str(&w, s, 5); /* one too small for the terminator */
	CHECK(!wire_ok(&w));
	CHECK_STR(s, "");
}

TEST(message_rejects_bad_heads)
{
	struct broker_vm_id in = { "sbx_ord_x" }, out;
	uint8_t mem[256];
	struct message_head head;
	struct wire w;
	size_t n;

	message_begin(&w, mem, sizeof(mem));
	broker_vm_id_put(&w, &in);
	REQUIRE(!message_end(&w, BROKER_VM_STAT, 9, 0, &n, NULL));
	REQUIRE(!message_open(mem, n, 0, &head, &w, NULL));
	broker_vm_id_get(&w, &out);
	CHECK(wire_done(&w));
	CHECK_STR(out.id, in.id);
	CHECK_EQ(head.sequence, 9);
	CHECK_EQ(message_open(mem, n, 1, &head, &w, NULL), RC_PROTO);
	CHECK_EQ(message_open(mem, n - 1, 0, &head, &w, NULL), RC_PROTO);
	for (size_t i = 0; i < 6; i++) {
		mem[i] ^= 1;
		CHECK_EQ(message_open(mem, n, 0, &head, &w, NULL), RC_PROTO);
		mem[i] ^= 1;
	}
}

static int fired, dropped_fired;
static struct source *other;

static void on_timer(void *arg)
{
	fired++;
	if (arg)
		loop_stop(arg);
}

static void on_fd(void *arg, uint32_t events)
{
	(void)arg;
	(void)events;
	dropped_fired++;
	source_drop(&other);
}

TEST(loop_timers_in_order_and_drop_in_batch)
{
	struct loop *loop;
	struct source *a, *b, *s1, *s2;
	int p[2];

	REQUIRE(!loop_new(&loop, NULL));
	fired = 0;
	REQUIRE(!loop_timer(loop, now_ms() + 30, on_timer, loop, &a, NULL));
	REQUIRE(!loop_timer(loop, now_ms() + 10, on_timer, NULL, &b, NULL));
	REQUIRE(!loop_run(loop, NULL));
	CHECK_EQ(fired, 2);

	/* Two ready sources; whichever runs first drops the other, so exactly one runs. */
	REQUIRE(!pipe2(p, O_CLOEXEC));
	int p2 = dup(p[1]);
	REQUIRE(!loop_fd(loop, p[1], EPOLLOUT, on_fd, NULL, &s1, NULL));
	REQUIRE(!loop_fd(loop, p2, EPOLLOUT, on_fd, NULL, &s2, NULL));
	other = s2;
	dropped_fired = 0;
	REQUIRE(!loop_once(loop, 100, NULL));
	CHECK(dropped_fired == 1 || dropped_fired == 2); /* 2 only when s2 itself came first */
	CHECK(other == NULL);
	loop_free(loop);
	close(p[0]);
	close(p[1]);
	close(p2);
}

static int child_status;

static void on_child(void *arg, int status)
{
	child_status = status;
	loop_stop(arg);
}

TEST(loop_child_is_reaped)
{
	struct loop *loop;
	struct source *s;
	pid_t pid;

	REQUIRE(!loop_new(&loop, NULL));
	pid = fork();
	if (!pid)
		_exit(3);
	REQUIRE(!loop_child(loop, pid, on_child, loop, &s, NULL));
	REQUIRE(!loop_run(loop, NULL));
	CHECK(WIFEXITED(child_status) && WEXITSTATUS(child_status) == 3);
	CHECK(waitpid(pid, NULL, WNOHANG) < 0);
	loop_free(loop);
}

TEST(packet_passes_descriptors_and_refuses_truncation)
{
	int pair[2], fds[FD_PASS_MAX], p[2];
	char data[16];
	size_t n, n_fds;

	REQUIRE(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
	REQUIRE(!pipe2(p, O_CLOEXEC));
	REQUIRE(!packet_send(pair[0], "hello", 5, p, 2, NULL));
	REQUIRE(!packet_recv(pair[1], data, sizeof(data), &n, fds, &n_fds, NULL));
	CHECK_EQ(n, 5);
	REQUIRE(n_fds == 2);
	CHECK(write(fds[1], "x", 1) == 1);
	CHECK(fcntl(fds[0], F_GETFD) & FD_CLOEXEC);
	fds_close(fds, n_fds);
	REQUIRE(!packet_send(pair[0], "much too long for it", 20, p, 2, NULL));
	CHECK_EQ(packet_recv(pair[1], data, sizeof(data), &n, fds, &n_fds, NULL), RC_PROTO);
	close(pair[0]);
	REQUIRE(!packet_recv(pair[1], data, sizeof(data), &n, fds, &n_fds, NULL));
	CHECK_EQ(n, 0);
	close(pair[1]);
	close(p[0]);
	close(p[1]);
}

TEST(config_says_which_line_is_wrong)
{
	char dir[] = "/tmp/nbtest.XXXXXX", path[64];
	struct config c;
	struct fault f;
	int d;

	REQUIRE(mkdtemp(dir));
	d = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	snprintf(path, sizeof(path), "%s/c", dir);
	REQUIRE(!file_write_at(d, "c", "# x\nvm_max = 5\nregion=ams\n", 26, 0600, NULL));
	REQUIRE(!config_load(&c, path, &f));
	CHECK_EQ(c.vm_max, 5);
	CHECK_STR(c.region, "ams");
	REQUIRE(!file_write_at(d, "c", "\nvm_max = 0\n", 12, 0600, NULL));
	CHECK_EQ(config_load(&c, path, &f), RC_INVALID);
	CHECK(strstr(f.text, "line 2") && strstr(f.text, "vm_max"));
	REQUIRE(!file_write_at(d, "c", "vmmax = 1\n", 10, 0600, NULL));
	CHECK_EQ(config_load(&c, path, &f), RC_INVALID);
	CHECK(strstr(f.text, "vmmax") != NULL);
	unlink(path);
	rmdir(dir);
	close(d);
}

TEST(a_host_has_a_name)
{
	static const char *const good[] = { "a", "1.2.3.4", "a-b.c--d.0", "x1.test", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.b" };
	static const char *const bad[] = { "", ".", "a.", ".a", "a..b", "-a", "a-", "a-.b", "a.-b", "A.b", "a_b", "a b", "a/b", "..", "\xc3\xa4.b",
					   "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.b" };

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		CHECK(host_name_is_valid(good[i]));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		CHECK(!host_name_is_valid(bad[i]));
}

TEST(random_hex_is_all_of_what_was_asked_for)
{
	char a[2 * 150 + 2], b[2 * 150 + 2];

	for (size_t n = 0; n <= 150; n++) {
		a[2 * n + 1] = '#';
		random_hex(a, n);
		CHECK_EQ(strlen(a), 2 * n);
		CHECK_EQ(strspn(a, "0123456789abcdef"), 2 * n);
		CHECK_EQ(a[2 * n + 1], '#');
		random_hex(b, n);
		CHECK(n < 8 || (strcmp(a, b) && memcmp(a, a + n, n) && memcmp(a + n, b + n, n)));
	}
}

TEST(read_line_reads_not_one_byte_more)
{
	int p[2];
	char line[8], rest[8];

	REQUIRE(!pipe2(p, O_CLOEXEC));
	REQUIRE(write(p[1], "abc\nrest", 8) == 8);
	REQUIRE(!fd_read_line(p[0], line, sizeof(line), now_ms() + 1000, NULL));
	CHECK_STR(line, "abc");
	CHECK(read(p[0], rest, 8) == 4);
	REQUIRE(write(p[1], "0123456789\n", 11) == 11);
	CHECK_EQ(fd_read_line(p[0], line, sizeof(line), now_ms() + 1000, NULL), RC_LIMIT);
	close(p[1]);
	close(p[0]);
}

CHECK_MAIN()
