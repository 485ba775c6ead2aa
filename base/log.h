/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One line per event on standard error: `<level> <program> message key=value ...`. Under systemd (JOURNAL_STREAM) the
 * syslog priority prefix `<N>` stands first; elsewhere an RFC 3339 UTC time does. Control bytes in values are
 * escaped, a line is at most 1024 bytes. What a guest or client can trigger goes through log_limited().
 */
#ifndef NB_BASE_LOG_H
#define NB_BASE_LOG_H

#include "base/fault.h"

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_ERROR = 3, LOG_LEVEL_WARN = 4, LOG_LEVEL_INFO = 6, LOG_LEVEL_DEBUG = 7 };

/* Call once at start. `program` must outlive the process. NESTBOX_LOG=debug|info|warn|error sets the threshold. */
void log_init(const char *program);

void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

/* "what: text (RC)" */
void log_fault(enum log_level level, const struct fault *f, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* A token bucket for lines that hostile input can cause: at most `burst`, then `per_minute`. */
struct log_limit {
	uint32_t burst, per_minute;
	uint64_t tokens_milli, last_ms, suppressed;
	bool started;
};
#define LOG_LIMIT_INIT(b, m) { .burst = (b), .per_minute = (m) }

/* True if a line may be written now; writes "N lines suppressed" itself when it opens again. */
bool log_allowed(struct log_limit *limit);
#define log_limited(limit, level, ...)                       \
	do {                                                 \
		if (log_allowed(limit))                      \
			log_line(level, __VA_ARGS__);        \
	} while (0)

#endif
