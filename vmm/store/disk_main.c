/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nestbox-disk: what reads whole disks, in a process of its own, for nestboxd (task.h). It has descriptors and no paths; nothing of a
 * disk's content is interpreted.
 *
 *   copy   3 -> 4, and 5: the sum of what was read; left empty if extents are shared
 *   seal   4 is flushed and read again, against 5; an empty 5 is filled
 *   check  3 is read, against 5
 *
 * Exit: 0; DISK_EXIT_DAMAGED: sums differ; DISK_EXIT_FULL: no space; else 1 and the reason on standard error.
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/store/sum.h"
#include "vmm/store/task.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static enum rc copy(struct fault *f)
{
	struct sum s;
	bool shared;
	enum rc rc = sum_copy(3, 4, &shared, &s, f);

	return rc || shared ? rc : sum_write(5, &s, f);
}

static enum rc check(int disk, bool fill, struct fault *f)
{
	struct sum is, should;
	enum rc rc = sum_read(5, &should, f);
	bool first = rc == RC_ABSENT && fill;

	if (!rc || first)
		rc = sum_disk(disk, &is, f);
	if (rc)
		return rc;
	return first ? sum_write(5, &is, f) : sum_compare(&is, &should, f);
}

static enum rc seal(struct fault *f)
{
	if (fsync(4) < 0 || fsync(5) < 0)
		return fault_set(f, rc_from_errno(errno), errno, "flush disk");
	return check(4, true, f);
}

int main(int argc, char **argv)
{
	const char *verb = argc == 2 ? argv[1] : "";
	struct fault f = { 0 };
	enum rc rc;

	log_init("nestbox-disk");
	if (!strcmp(verb, "copy"))
		rc = copy(&f);
	else if (!strcmp(verb, "seal"))
		rc = seal(&f);
	else if (!strcmp(verb, "check"))
		rc = check(3, false, &f);
	else
		return 2;
	if (rc)
		log_fault(LOG_LEVEL_WARN, &f, "%s", verb);
	return !rc ? 0 : rc == RC_STATE ? DISK_EXIT_DAMAGED : rc == RC_NOSPACE ? DISK_EXIT_FULL : 1;
}
