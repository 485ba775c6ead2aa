/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/jail/jail.h"

#include "base/cleanup.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

struct jail_filter {
	struct sock_fprog prog;
	struct sock_filter ins[];
};

static enum rc filter_add(scmp_filter_ctx ctx, const struct jail_list *list, struct fault *ret_f)
{
	int err = 0;

	for (size_t i = 0; !err && i < list->n_calls; i++) {
		const struct jail_call *c = &list->calls[i];
		struct scmp_arg_cmp cmp[2];

		for (unsigned int k = 0; k < c->n_args; k++)
			cmp[k] = (struct scmp_arg_cmp){ .arg = c->args[k].index, .op = SCMP_CMP_MASKED_EQ,
							.datum_a = c->args[k].mask, .datum_b = c->args[k].value };
		err = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, c->nr, c->n_args, cmp);
		if (err)
			return fault_set(ret_f, RC_SYS, -err, "seccomp rule for call %d", c->nr);
	}
	for (size_t i = 0; i < list->n_refused; i++) {
		err = seccomp_rule_add_array(ctx, SCMP_ACT_ERRNO((uint32_t)list->refused[i].sys),
					     list->refused[i].nr, 0, NULL);
		if (err)
			return fault_set(ret_f, RC_SYS, -err, "seccomp refusal of call %d", list->refused[i].nr);
	}
	return RC_OK;
}

/* libseccomp only writes programs to descriptors. */
static enum rc filter_export(scmp_filter_ctx ctx, struct jail_filter **ret, struct fault *ret_f)
{
	_cleanup_fd_ int fd = memfd_create("filter", MFD_CLOEXEC);
	struct jail_filter *filter;
	struct stat st;
	int err;

	if (fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "memfd_create");
	err = seccomp_export_bpf(ctx, fd);
	if (err)
		return fault_set(ret_f, RC_SYS, -err, "compile a system call filter");
	if (fstat(fd, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "fstat");
	filter = malloc(sizeof(*filter) + (size_t)st.st_size);
	if (!filter)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	if (pread(fd, filter->ins, (size_t)st.st_size, 0) != st.st_size) {
		free(filter);
		return fault_set(ret_f, RC_SYS, errno, "read the compiled filter");
	}
	filter->prog.len = (unsigned short)((size_t)st.st_size / sizeof(struct sock_filter));
	filter->prog.filter = filter->ins;
	*ret = filter;
	return RC_OK;
}

enum rc jail_filter_new(const struct jail_list *list, struct jail_filter **ret, struct fault *ret_f)
{
	const char *mode = getenv("NESTBOX_SECCOMP");
	scmp_filter_ctx ctx = seccomp_init(mode && !strcmp(mode, "log") ? SCMP_ACT_LOG : SCMP_ACT_KILL_PROCESS);
	enum rc rc;

	if (!ctx)
		return fault_set(ret_f, RC_NOMEM, 0, "seccomp_init");
	/* A tree instead of a chain: QEMU's calls are many and it makes some of them often. */
	(void)seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	rc = filter_add(ctx, list, ret_f);
	if (!rc)
		rc = filter_export(ctx, ret, ret_f);
	seccomp_release(ctx);
	return rc;
}

void jail_filter_free(struct jail_filter *filter)
{
	free(filter);
}

int jail_filter_load(const struct jail_filter *filter)
{
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter->prog, 0, 0);
}
