/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets of the control socket, both ways: what nestbox-vmm reads from the broker, and what the broker reads from a nestbox-vmm that its
 * guest has taken over.
 */
#include "vmm/engines/kvm/control.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Descriptors that are not there, so that closing them is harmless. */
static void start(struct wire *w)
{
	struct request r = { .in = *w };
	struct vm_spec spec = { 0 };
	struct control_start m;
	struct fault f;

	control_start_get(w, &m);
	if (wire_done(w) && !read_devices(&m, &r, &spec, &f) && (spec.n_disks > VMM_DISKS_MAX || spec.n_nics > VMM_NICS_MAX))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	uint8_t mem[MESSAGE_MAX];
	struct control_resumed resumed;
	struct control_resized resized;
	struct control_balloon balloon;
	struct control_forked forked;
	struct control_stat stat;
	struct message_head head;
	struct fault f;
	struct wire w;

	if (n > sizeof(mem))
		return 0;
	memcpy(mem, data, n);
	if (message_open(mem, n, n ? data[n - 1] % 4 : 0, &head, &w, &f))
		return 0;
	if (head.op & MESSAGE_REPLY && message_get_result(&w, &f))
		return 0;
	switch (head.op & ~MESSAGE_REPLY) {
	case CONTROL_START: start(&w); break;
	case CONTROL_RESUME: control_resumed_get(&w, &resumed); break;
	case CONTROL_RESIZED: control_resized_get(&w, &resized); break;
	case CONTROL_BALLOON: control_balloon_get(&w, &balloon); break;
	case CONTROL_FORK: control_forked_get(&w, &forked); break;
	case CONTROL_STAT: control_stat_get(&w, &stat); break;
	default: break;
	}
	return 0;
}
