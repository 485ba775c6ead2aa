/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logs of apps, as the runner writes and the API reads them: <state_dir>/logs/apps/<app id>/<name>.jsonl, names that sort by
 * age (the first line's time in 16 digits, then [0-9A-Za-z._-]), lines appended in order of time, whole old files removed:
 *
 *	{"timestamp":"2026-01-01T00:00:00.000Z","level":"info","revision_id":"...","instance":"...","region":"ord","message":"..."}
 *
 * level: debug, info, warn, error. A line is at most APP_LOG_LINE_MAX bytes with its newline. A file that has a successor ends with
 * GATEWAY_LOG_END. A reader who is sent the lines as they are gets what the API answers, and how each is written (no blank, the message
 * last) is what the gateway's filters are made for.
 */
#ifndef NB_FCGI_APP_LOG_H
#define NB_FCGI_APP_LOG_H

#define APP_LOG_SUFFIX ".jsonl"
#define APP_LOG_LINE_MAX 65536
#define APP_LOG_NAME_MAX 64

#endif
