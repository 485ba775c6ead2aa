/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE_MAX 1024

static const char *log_program = "nestbox";
static enum log_level log_threshold = LOG_LEVEL_INFO;
static bool log_journal;

void log_init(const char *program)
{
	const char *level = getenv("NESTBOX_LOG");

	log_program = program;
	tzset(); /* else the first line does it and opens a file, which a confined process may not */
	log_journal = getenv("JOURNAL_STREAM") != NULL;
	if (!level)
		return;
	if (!strcmp(level, "debug"))
		log_threshold = LOG_LEVEL_DEBUG;
	else if (!strcmp(level, "warn"))
		log_threshold = LOG_LEVEL_WARN;
	else if (!strcmp(level, "error"))
		log_threshold = LOG_LEVEL_ERROR;
}

static const char *level_name(enum log_level level)
{
	switch (level) {
	case LOG_LEVEL_ERROR: return "error";
	case LOG_LEVEL_WARN: return "warn";
	case LOG_LEVEL_INFO: return "info";
	case LOG_LEVEL_DEBUG: return "debug";
	}
	return "?";
}

static size_t put_prefix(char *out, size_t size, enum log_level level)
{
	struct timespec now;
	struct tm tm;
	char stamp[32];
	int n;

	if (log_journal) {
		n = snprintf(out, size, "<%d>%s: ", (int)level, log_program);
		return n < 0 ? 0 : (size_t)n;
	}
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &tm);
	n = snprintf(out, size, "%s.%03ldZ %s %s: ", stamp, now.tv_nsec / 1000000, level_name(level), log_program);
	return n < 0 ? 0 : (size_t)n;
}

static void log_vline(enum log_level level, const char *fmt, va_list ap)
{
	char line[LOG_LINE_MAX];
	size_t n, room = sizeof(line) - 1;
	int w;

	if (level > log_threshold)
		return;
	n = put_prefix(line, room, level);
	w = vsnprintf(line + n, room - n, fmt, ap);
	if (w > 0) {
		size_t end = n + (size_t)w < room ? n + (size_t)w : room - 1;

		for (size_t i = n; i < end; i++)
			if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
				line[i] = '?';
		n = end;
	}
	line[n++] = '\n';
	/* One write, so that lines of several processes do not mix. A full pipe loses the line, not the daemon. */
	if (write(STDERR_FILENO, line, n) < 0)
		return;
}

void log_line(enum log_level level, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	log_vline(level, fmt, ap);
	va_end(ap);
}

void log_fault(enum log_level level, const struct fault *f, const char *fmt, ...)
{
	char what[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	log_line(level, "%s: %s (%s)", what, f->text, rc_name(f->rc));
}

bool log_allowed(struct log_limit *l)
{
	struct timespec t;
	uint64_t now, suppressed;

	clock_gettime(CLOCK_MONOTONIC, &t);
	now = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
	if (!l->started) {
		l->started = true;
		l->tokens_milli = (uint64_t)l->burst * 1000;
		l->last_ms = now;
	}
	l->tokens_milli += (now - l->last_ms) * l->per_minute / 60;
	l->last_ms = now;
	if (l->tokens_milli > (uint64_t)l->burst * 1000)
		l->tokens_milli = (uint64_t)l->burst * 1000;
	if (l->tokens_milli < 1000) {
		l->suppressed++;
		return false;
	}
	l->tokens_milli -= 1000;
	suppressed = l->suppressed;
	l->suppressed = 0;
	if (suppressed)
		log_line(LOG_LEVEL_WARN, "%llu similar lines suppressed", (unsigned long long)suppressed);
	return true;
}
