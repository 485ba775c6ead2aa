/* SPDX-License-Identifier: Apache-2.0 */
/* The relay between two socket pairs, against a trivial model: what goes in at one end comes out at the other, in order. */
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/gateway/relay.h"
#include "tests/lib/check.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>

static struct relay_pool pool;
static struct relay relay;
static int client, server, near_a, near_b; /* client <-> near_a  relay  near_b <-> server */
static bool finished;

static void on_done(void *arg)
{
	*(bool *)arg = true;
	relay_stop(&relay);
}

static void begin(void)
{
	int a[2], b[2];

	signal(SIGPIPE, SIG_IGN);
	finished = false;
	pool = (struct relay_pool){ 0 };
	if (loop_new(&pool.loop, NULL) || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, a) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, b))
		abort();
	client = a[0];
	near_a = a[1];
	server = b[0];
	near_b = b[1];
	if (relay_start(&relay, &pool, near_a, near_b, on_done, &finished, NULL))
		abort();
}

static void end(void)
{
	relay_stop(&relay);
	close_fd(&client);
	close_fd(&server);
	close_fd(&near_a);
	close_fd(&near_b);
	relay_pool_free(&pool);
	loop_free(pool.loop);
}

/* Until nothing moves any more. */
static void settle(void)
{
	uint64_t before;

	do {
		before = pool.bytes;
		loop_once(pool.loop, 0, NULL);
		loop_once(pool.loop, 0, NULL);
	} while (pool.bytes != before);
}

/* Byte number n of a stream: position-dependent, so that a lost or doubled piece shows. */
static uint8_t byte_at(uint64_t n)
{
	return (uint8_t)((n * 2654435761u) >> 13);
}

static uint64_t feed(int fd, uint64_t from, size_t n)
{
	uint8_t mem[8192];

	n = MIN_OF(n, sizeof(mem));
	for (size_t i = 0; i < n; i++)
		mem[i] = byte_at(from + i);
	ssize_t put = send(fd, mem, n, MSG_DONTWAIT | MSG_NOSIGNAL);

	return put > 0 ? (uint64_t)put : 0;
}

static uint64_t drain(int fd, uint64_t from, size_t n, bool *ret_eof)
{
	uint8_t mem[8192];
	ssize_t got = recv(fd, mem, MIN_OF(n, sizeof(mem)), MSG_DONTWAIT);

	*ret_eof = got == 0;
	for (ssize_t i = 0; i < got; i++)
		if (mem[i] != byte_at(from + (uint64_t)i)) {
			CHECK(mem[i] == byte_at(from + (uint64_t)i));
			break;
		}
	return got > 0 ? (uint64_t)got : 0;
}

TEST(random_pieces_both_ways)
{
	uint64_t in[2] = { 0 }, out[2] = { 0 };
	unsigned int seed = 7;
	bool eof;

	begin();
	for (int i = 0; i < 20000; i++) {
		int way = rand_r(&seed) & 1;
		int from = way ? server : client, to = way ? client : server;

		if (rand_r(&seed) & 1)
			in[way] += feed(from, in[way], 1 + (size_t)rand_r(&seed) % 8192);
		else
			out[way] += drain(to, out[way], 1 + (size_t)rand_r(&seed) % 8192, &eof);
		if (rand_r(&seed) & 1)
			loop_once(pool.loop, 0, NULL);
	}
	for (int i = 0; i < 2; i++)
		for (int k = 0; k < 2000 && out[i] < in[i]; k++) {
			loop_once(pool.loop, 0, NULL);
			out[i] += drain(i ? client : server, out[i], 8192, &eof);
		}
	CHECK(in[0] > 1000000 && in[1] > 1000000);
	CHECK_EQ(out[0], in[0]);
	CHECK_EQ(out[1], in[1]);
	CHECK(!finished);
	CHECK(relay.way[0].pipe[0] < 0 && relay.way[1].pipe[0] < 0);
	end();
}

TEST(a_reader_that_does_not_read_stops_the_writer)
{
	uint64_t in = 0, n;
	int idle = 0;

	begin();
	while (idle < 50 && in < (64u << 20)) {
		n = feed(client, in, 8192);
		in += n;
		idle = n ? 0 : idle + 1;
		loop_once(pool.loop, 0, NULL);
	}
	printf("  held back after %llu KiB\n", (unsigned long long)in / 1024);
	CHECK(in < (4u << 20));
	CHECK(!finished);
	/* And nothing is lost once it reads. */
	for (uint64_t out = 0; out < in; out += n) {
		bool eof;

		loop_once(pool.loop, 0, NULL);
		n = drain(server, out, 8192, &eof);
		REQUIRE(n > 0);
	}
	end();
}

TEST(half_close)
{
	char c;
	bool eof;

	begin();
	CHECK_EQ(feed(client, 0, 100), 100);
	shutdown(client, SHUT_WR);
	settle();
	CHECK_EQ(drain(server, 0, 8192, &eof), 100);
	CHECK_EQ(recv(server, &c, 1, MSG_DONTWAIT), 0);
	CHECK(!finished);
	CHECK_EQ(feed(server, 0, 50), 50);
	settle();
	CHECK_EQ(drain(client, 0, 8192, &eof), 50);
	shutdown(server, SHUT_WR);
	settle();
	CHECK(finished);
	end();
}

TEST(last_words_are_delivered)
{
	bool eof;

	begin();
	CHECK_EQ(feed(server, 0, 5000), 5000);
	close_fd(&server);
	settle();
	CHECK_EQ(drain(client, 0, 8192, &eof), 5000);
	settle();
	close_fd(&client);
	settle();
	CHECK(finished);
	end();
}

/* Much is under way to a client that reads slowly when the server has gone: all of it arrives. */
TEST(last_words_through_a_full_pipe)
{
	uint64_t in = 0, out = 0, n;
	bool eof = false;
	int idle = 0;

	begin();
	while (idle < 20) {
		n = feed(server, in, 8192);
		in += n;
		idle = n ? 0 : idle + 1;
		loop_once(pool.loop, 0, NULL);
	}
	close_fd(&server);
	for (int i = 0; i < 100000 && !eof; i++) {
		out += drain(client, out, 700, &eof);
		loop_once(pool.loop, 0, NULL);
	}
	CHECK_EQ(out, in);
	CHECK(eof);
	end();
}

/* However much is under way when the end comes, and however it is taken: the end arrives. */
TEST(the_end_arrives_after_any_amount)
{
	for (size_t amount = 4096; amount < (2u << 20); amount += 8192 * 3 + 512) {
		uint64_t in = 0, out = 0, n;
		bool eof = false;

		begin();
		for (int idle = 0; in < amount && idle < 4; idle = n ? 0 : idle + 1, in += n) {
			n = feed(server, in, MIN_OF(amount - in, (size_t)8192));
			loop_once(pool.loop, 0, NULL);
		}
		shutdown(server, SHUT_WR);
		for (int i = 0; i < 3000 && !eof; i++) {
			loop_once(pool.loop, 0, NULL);
			/* Taken in bursts, so that the relay finds room for several rounds. */
			for (int k = 0; k < 64 && !eof && (n = drain(client, out, 8192, &eof)); k++)
				out += n;
		}
		CHECK_EQ(out, in);
		if (!eof) {
			CHECK(eof);
			end();
			return;
		}
		end();
	}
}

TEST(a_client_that_vanishes)
{
	begin();
	CHECK_EQ(feed(server, 0, 8192), 8192);
	close_fd(&client);
	settle();
	/* Nobody can take it: the server's side is told. */
	char c;

	CHECK_EQ(recv(server, &c, 1, MSG_DONTWAIT), 0);
	settle();
	CHECK(finished);
	end();
}

/* Both have gone or stalled: no descriptor event may keep the loop busy. */
TEST(no_spinning)
{
	int idle = 0;
	uint64_t t;

	begin();
	for (uint64_t n, in = 0; idle < 20; idle = n ? 0 : idle + 1, in += n) {
		n = feed(client, in, 8192);
		loop_once(pool.loop, 0, NULL);
	}
	close_fd(&client);
	settle();
	t = now_ms();
	loop_once(pool.loop, 100, NULL);
	CHECK(now_ms() - t >= 90);
	end();
}

TEST(pipes_are_kept_but_not_too_many)
{
	begin();
	for (int i = 0; i < 100; i++) {
		bool eof;

		CHECK_EQ(feed(client, 0, 10), 10);
		settle();
		CHECK_EQ(drain(server, 0, 100, &eof), 10);
	}
	CHECK_EQ(pool.n_pipes, 1);
	end();
}

CHECK_MAIN()
