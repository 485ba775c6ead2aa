/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An engine, a network and an agent that exist in this process only, so that a broker's whole life runs on one loop in
 * milliseconds, and any step of it can be made to fail: fake_fail(n) makes the n-th fallible step from now on fail once.
 */
#ifndef NB_TESTS_FAKE_VMM_H
#define NB_TESTS_FAKE_VMM_H

#include "base/config.h"
#include "vmm/engines/engine.h"

#include <stdbool.h>

#define FAKE_OVERHEAD_MIB 100

enum fake_agent_mode { AGENT_OK, AGENT_ERROR, AGENT_GARBAGE, AGENT_LONG, AGENT_SILENT, AGENT_CLOSES };

struct fake {
	struct engine engine;
	int agent_fd, agent_port;
	struct source *agent_source;
	enum fake_agent_mode agent_mode;
	char control_ops[1024]; /* the control operations it was asked, separated by blanks */
	int disk_mib[ENGINE_DISKS_MAX]; /* of the machine started last */
	char last_line[65536];  /* what an agent was asked last */
	unsigned int forks, boots, restores, resizes, saves, live_vms, live_nets, live_snapshots, lines, checks, stores, stores_based;
	unsigned int bad_boots; /* so many cold boots fail */
	unsigned int marked;    /* read-only disks of a machine whose descriptor had flags that another machine's process set */
	bool refuse_snapshots;  /* snapshot_open says RC_STATE */
	bool damaged;           /* reading all of a snapshot says RC_STATE */
	bool slow_saves;        /* a save takes until its machine dies, a take until this is false or it dies */
};

extern struct fake fake;
extern bool fake_copies_charged; /* of the engine made next */
extern const char *fake_shape;   /* likewise */

/* A state directory with an image in it, below dir, a mkdtemp() template; changes into it. */
void fake_world(struct config *ret, char *dir);

/* The engine and the agent live on this loop. Processes of an earlier engine stay "running". */
void fake_open(struct loop *loop);
void fake_close(void);
/* The process of this machine dies by itself; noticed on the loop if its engine_vm exists. */
void fake_die(const char *id);
bool fake_runs(const char *id);
bool fake_paused(const char *id);
void fake_reset(void); /* forgets all processes and counters */

void fake_fail(unsigned int n); /* 0: nothing fails */
bool fake_failed(void);         /* the failure has been used up */

#endif
