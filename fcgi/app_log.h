/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logs of apps, as the runner writes and the API reads them: <state_dir>/logs/apps/<app id>/<name>.jsonl, names that sort by
 * age ([0-9A-Za-z._-], e.g. the first line's time in 16 digits), lines appended in order of time, whole old files removed:
 *
 *	{"time_ms": 1760000000000, "level": "info", "message": "...", "revision_id": "...", "instance": "...", "region": "ord"}
 *
 * level: debug, info, warn, error. A line is at most APP_LOG_LINE_MAX bytes with its newline.
 */
#ifndef NB_FCGI_APP_LOG_H
#define NB_FCGI_APP_LOG_H

#define APP_LOG_SUFFIX ".jsonl"
#define APP_LOG_LINE_MAX 65536
#define APP_LOG_NAME_MAX 64

#endif
