/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the broker's side of the engine (client.c) asks of a nestbox-vmm process, on a SOCK_SEQPACKET listener inherited as
 * descriptor 3. Encoding: schema/message.h. One connection at a time; a later one replaces it (a restarted broker). The process
 * serves one machine: START once, and when the machine ends the process exits.
 *
 * op       allowed in       descriptors of the request
 * START    NEW              kvm, console log, disks.., taps.., then kernel, initrd (cold) or base, [delta,] state (snapshot)
 * PAUSE    RUNNING
 * RESUME   PAUSED           answers how long the machine stood still; after FORK when the delta has been sealed
 * SAVE     PAUSED           memory file, state file, [page map]; the files empty. Checksummed (savefile.h); the machine stays paused
 * FORK     RUNNING          [page map]; copies while it runs, then leaves the machine PAUSED; answers +3 fds: base, delta, state
 *                           (memfds, the delta not sealed yet; without a base: 2 fds). The asker cuts the disks, then sends RESUME.
 * RESIZED  RUNNING, PAUSED  a disk's file has another size now
 * BALLOON  RUNNING, PAUSED  asks the guest to give up so many MiB in all
 * STAT     any
 *
 * When the connection ends, a machine that a FORK left standing goes on, because nobody would send its RESUME, and the fork is nobody's. One that a PAUSE
 * stopped stays so: only who comes next knows whether somebody wanted it to stand still; STAT tells how it is.
 *
 * The page map is /proc/<pid>/pagemap of the process itself, which has no /proc: it spares the first SAVE or FORK of a machine that
 * booted cold reading memory that was never touched. It is closed with the answer. Opened so that it tells of each page whether it is there
 * and not where (process_pagemap()), it says nothing that its memory's reader could not find out.
 *
 * Whoever holds this socket owns the machine completely, so only the broker ever does; nothing the guest does reaches it.
 */
#ifndef NB_VMM_CONTROL_H
#define NB_VMM_CONTROL_H

#include "schema/message.h"

#define CONTROL_FD 3
#define CONTROL_SERIALS_MAX 512 /* "serial\0flags\0".. */
#define CONTROL_MACS_MAX 64
#define CONTROL_CMDLINE_MAX 2048

enum control_op {
	CONTROL_START = 1,
	CONTROL_PAUSE,
	CONTROL_RESUME,
	CONTROL_SAVE,
	CONTROL_FORK,
	CONTROL_RESIZED,
	CONTROL_STAT,
	CONTROL_BALLOON,
};

enum control_state { CONTROL_NEW, CONTROL_RUNNING, CONTROL_PAUSED };

#define CONTROL_NONE_FIELDS(F)
MESSAGE_DECLARE(control_none, CONTROL_NONE_FIELDS)

/* disks: for each a serial, a NUL, "ro" or "rw", a NUL. nics: for each a MAC and a NUL. */
#define CONTROL_START_FIELDS(F)                                                        \
	F(U32, cpus, 0)                                                                \
	F(U32, memory_mib, 0)                                                          \
	F(U32, layers, 0) /* 0: cold; 1: a base; 2: a base and a delta; 3: a delta only */ \
	F(U32, disk_iops, 0) /* struct vm_limits */                                    \
	F(U32, disk_mbps, 0)                                                           \
	F(U32, net_pps, 0)                                                             \
	F(U32, net_mbps, 0)                                                            \
	F(BLOB, disks, CONTROL_SERIALS_MAX)                                            \
	F(BLOB, nics, CONTROL_MACS_MAX)                                                \
	F(STR, cmdline, CONTROL_CMDLINE_MAX)
MESSAGE_DECLARE(control_start, CONTROL_START_FIELDS)

#define CONTROL_RESUMED_FIELDS(F) F(U32, pause_us, 0)
MESSAGE_DECLARE(control_resumed, CONTROL_RESUMED_FIELDS)

#define CONTROL_FORKED_FIELDS(F)                                                       \
	F(U32, layers, 0)                                                              \
	F(U64, pages, 0)        /* in the delta */                                     \
	F(U64, pages_paused, 0) /* of these, copied during the pause */                \
	F(U32, rounds, 0)
MESSAGE_DECLARE(control_forked, CONTROL_FORKED_FIELDS)

#define CONTROL_RESIZED_FIELDS(F) F(STR, serial, 21)
MESSAGE_DECLARE(control_resized, CONTROL_RESIZED_FIELDS)

#define CONTROL_BALLOON_FIELDS(F) F(U32, mib, 0)
MESSAGE_DECLARE(control_balloon, CONTROL_BALLOON_FIELDS)

#define CONTROL_STAT_FIELDS(F)                                                         \
	F(U32, state, 0) /* enum control_state */                                      \
	F(U64, own_pages, 0) F(U64, tx_frames, 0) F(U64, rx_frames, 0) F(U64, serial_dropped, 0) \
	F(U64, reported_bytes, 0) /* given back by free page reporting, in all */      \
	F(U32, balloon_pages, 0)  /* of 4 KiB, in the balloon now, as the guest says */
MESSAGE_DECLARE(control_stat, CONTROL_STAT_FIELDS)

#endif
