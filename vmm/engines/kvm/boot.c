/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/boot.h"

#include "base/cleanup.h"
#include "vmm/engines/kvm/acpi.h"
#include "vmm/engines/kvm/limits.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define GDT_AT 0x500ull
#define START_INFO_AT 0x6000ull
#define MODLIST_AT 0x6100ull
#define MEMMAP_AT 0x6200ull
#define ZERO_PAGE_AT 0x7000ull
#define PML4_AT 0x9000ull /* then the PDPT and four page directories: 4 GiB in 2 MiB pages */
#define CMDLINE_AT 0x20000ull
#define KERNEL_AT 0x1000000ull
#define LOW_END 0x9f000ull /* the generation id's page follows */
#define HIGH_START 0x100000ull
#define INITRD_MAX 0x7fffffffull

#define XEN_NOTE_PHYS32_ENTRY 18
#define PVH_MAGIC 0x336ec578u

struct pvh_start_info {
	uint32_t magic, version, flags, n_modules;
	uint64_t modlist, cmdline, rsdp, memmap;
	uint32_t n_memmap, reserved;
};
struct pvh_module {
	uint64_t addr, bytes, cmdline, reserved;
};
struct pvh_region {
	uint64_t addr, bytes;
	uint32_t type, reserved;
};

struct region {
	uint64_t addr, bytes;
	uint32_t type; /* 1 usable, 2 reserved */
};

static unsigned int regions(const struct memory *m, struct region out[5])
{
	unsigned int n = 0;

	out[n++] = (struct region){ 0, LOW_END, 1 };
	out[n++] = (struct region){ LOW_END, HIGH_START - LOW_END, 2 };
	out[n++] = (struct region){ HIGH_START, m->low - HIGH_START, 1 };
	if (m->high)
		out[n++] = (struct region){ MEMORY_HIGH, m->high, 1 };
	return n;
}

static enum rc read_to(const struct memory *m, int fd, uint64_t file_at, uint64_t addr, uint64_t n, const char *what,
		       struct fault *ret_f)
{
	uint8_t *to = memory_at(m, addr, n, true);

	if (!to)
		return fault_set(ret_f, RC_INVALID, 0, "%s does not fit into memory", what);
	while (n) {
		ssize_t got = pread(fd, to, n, (off_t)file_at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return fault_set(ret_f, RC_INVALID, got < 0 ? errno : 0, "%s ends early", what);
		to += got;
		file_at += (uint64_t)got;
		n -= (uint64_t)got;
	}
	return RC_OK;
}

static enum rc peek(int fd, uint64_t at, void *out, size_t n, struct fault *ret_f)
{
	if (pread(fd, out, n, (off_t)at) != (ssize_t)n)
		return fault_set(ret_f, RC_INVALID, 0, "kernel file is truncated");
	return RC_OK;
}

/* As high as the kernel allows and memory reaches, page-aligned. */
static enum rc load_initrd(const struct memory *m, int fd, uint64_t *ret_at, uint64_t *ret_n, struct fault *ret_f)
{
	uint64_t top = MIN_OF(m->low, INITRD_MAX + 1), n;
	struct stat st;

	*ret_at = *ret_n = 0;
	if (fd < 0)
		return RC_OK;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0)
		return fault_set(ret_f, RC_INVALID, 0, "initrd is not a regular file with content");
	n = (uint64_t)st.st_size;
	if (n > top / 2)
		return fault_set(ret_f, RC_INVALID, 0, "initrd is too large for this memory");
	*ret_n = n;
	*ret_at = (top - n) & ~0xfffull;
	return read_to(m, fd, 0, *ret_at, n, "initrd", ret_f);
}

static enum rc put_cmdline(const struct memory *m, const char *cmdline, struct fault *ret_f)
{
	size_t n = strlen(cmdline) + 1;
	void *to = memory_at(m, CMDLINE_AT, n, true);

	if (n > VMM_CMDLINE_MAX || !to)
		return fault_set(ret_f, RC_INVALID, 0, "command line is longer than %d bytes", VMM_CMDLINE_MAX - 1);
	memcpy(to, cmdline, n);
	return RC_OK;
}

/* Looks for the PVH entry among the notes of one segment. */
static uint64_t find_note(int fd, const Elf64_Phdr *ph)
{
	uint8_t notes[65536];
	size_t n = MIN_OF(ph->p_filesz, sizeof(notes)), at = 0;

	if (pread(fd, notes, n, (off_t)ph->p_offset) != (ssize_t)n)
		return 0;
	while (n - at >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr h;
		size_t name, desc;

		memcpy(&h, notes + at, sizeof(h));
		at += sizeof(h);
		name = ((size_t)h.n_namesz + 3) & ~(size_t)3;
		desc = ((size_t)h.n_descsz + 3) & ~(size_t)3;
		if (name > n - at || desc > n - at - name)
			return 0;
		if (h.n_type == XEN_NOTE_PHYS32_ENTRY && h.n_namesz == 4 && !memcmp(notes + at, "Xen", 4) &&
		    h.n_descsz >= 4) {
			uint32_t entry;

			memcpy(&entry, notes + at + name, 4);
			return entry;
		}
		at += name + desc;
	}
	return 0;
}

static void put_start_info(const struct memory *m, uint64_t initrd_at, uint64_t initrd_n)
{
	struct pvh_start_info info = { .magic = PVH_MAGIC, .version = 1, .cmdline = CMDLINE_AT, .rsdp = ACPI_RSDP,
				       .memmap = MEMMAP_AT };
	struct pvh_module module = { .addr = initrd_at, .bytes = initrd_n };
	struct region r[5];

	info.n_memmap = regions(m, r);
	if (initrd_n) {
		info.n_modules = 1;
		info.modlist = MODLIST_AT;
		memcpy(memory_at(m, MODLIST_AT, sizeof(module), true), &module, sizeof(module));
	}
	for (unsigned int i = 0; i < info.n_memmap; i++) {
		struct pvh_region out = { r[i].addr, r[i].bytes, r[i].type, 0 };

		memcpy(memory_at(m, MEMMAP_AT + i * sizeof(out), sizeof(out), true), &out, sizeof(out));
	}
	memcpy(memory_at(m, START_INFO_AT, sizeof(info), true), &info, sizeof(info));
}

static enum rc load_elf(const struct memory *m, int fd, struct boot_entry *ret, struct fault *ret_f)
{
	Elf64_Ehdr eh;
	enum rc rc = peek(fd, 0, &eh, sizeof(eh), ret_f);
	uint64_t entry = 0;

	if (rc)
		return rc;
	if (eh.e_machine != EM_X86_64 || eh.e_phentsize != sizeof(Elf64_Phdr) || eh.e_phnum > 64)
		return fault_set(ret_f, RC_INVALID, 0, "kernel is not an x86-64 ELF file");
	for (unsigned int i = 0; i < eh.e_phnum; i++) {
		Elf64_Phdr ph;

		rc = peek(fd, eh.e_phoff + i * sizeof(ph), &ph, sizeof(ph), ret_f);
		if (rc)
			return rc;
		if (ph.p_type == PT_NOTE && !entry)
			entry = find_note(fd, &ph);
		if (ph.p_type != PT_LOAD || !ph.p_filesz)
			continue;
		if (ph.p_paddr < HIGH_START || !memory_at(m, ph.p_paddr, ph.p_memsz, true))
			return fault_set(ret_f, RC_INVALID, 0, "kernel segment lies outside memory");
		rc = read_to(m, fd, ph.p_offset, ph.p_paddr, ph.p_filesz, "kernel", ret_f);
		if (rc)
			return rc;
	}
	if (!entry)
		return fault_set(ret_f, RC_INVALID, 0, "kernel has no PVH entry note");
	*ret = (struct boot_entry){ .rip = entry, .rbx = START_INFO_AT };
	return RC_OK;
}

static enum rc load_bzimage(const struct memory *m, int fd, struct boot_params *bp, struct boot_entry *ret,
			    struct fault *ret_f)
{
	struct setup_header *h = &bp->hdr;
	uint64_t setup, at = KERNEL_AT;
	struct stat st;
	enum rc rc = peek(fd, offsetof(struct boot_params, hdr), h, sizeof(*h), ret_f);

	if (rc)
		return rc;
	if (h->header != 0x53726448 || h->version < 0x020c || !(h->xloadflags & XLF_KERNEL_64))
		return fault_set(ret_f, RC_INVALID, 0, "kernel has no 64-bit entry (boot protocol 2.12)");
	if (h->relocatable_kernel && h->pref_address >= HIGH_START && !(h->pref_address & 0x1fffff))
		at = h->pref_address;
	setup = ((uint64_t)(h->setup_sects ? h->setup_sects : 4) + 1) * 512;
	if (fstat(fd, &st) < 0 || (uint64_t)st.st_size <= setup)
		return fault_set(ret_f, RC_INVALID, 0, "kernel file is truncated");
	if (!memory_at(m, at, h->init_size, true))
		return fault_set(ret_f, RC_INVALID, 0, "kernel needs %u bytes to unpack itself", h->init_size);
	*ret = (struct boot_entry){ .long_mode = true, .rip = at + 0x200, .rsi = ZERO_PAGE_AT };
	return read_to(m, fd, setup, at, (uint64_t)st.st_size - setup, "kernel", ret_f);
}

static void put_boot_params(const struct memory *m, struct boot_params *bp, uint64_t initrd_at, uint64_t initrd_n)
{
	struct region r[5];

	bp->hdr.type_of_loader = 0xff;
	bp->hdr.loadflags |= LOADED_HIGH;
	bp->hdr.cmd_line_ptr = (uint32_t)CMDLINE_AT;
	bp->hdr.ramdisk_image = (uint32_t)initrd_at;
	bp->hdr.ramdisk_size = (uint32_t)initrd_n;
	bp->acpi_rsdp_addr = ACPI_RSDP;
	bp->e820_entries = (uint8_t)regions(m, r);
	for (unsigned int i = 0; i < bp->e820_entries; i++)
		bp->e820_table[i] = (struct boot_e820_entry){ r[i].addr, r[i].bytes, r[i].type };
	memcpy(memory_at(m, ZERO_PAGE_AT, sizeof(*bp), true), bp, sizeof(*bp));
}

enum rc boot_load(const struct memory *m, int kernel_fd, int initrd_fd, const char *cmdline, struct boot_entry *ret,
		  struct fault *ret_f)
{
	struct boot_params bp = { 0 };
	uint64_t initrd_at, initrd_n;
	uint8_t magic[4];
	bool elf;
	enum rc rc;

	if (m->low < (64u << 20))
		return fault_set(ret_f, RC_INVALID, 0, "memory is too small for a kernel");
	rc = peek(kernel_fd, 0, magic, sizeof(magic), ret_f);
	if (rc)
		return rc;
	elf = !memcmp(magic, ELFMAG, 4);
	rc = elf ? load_elf(m, kernel_fd, ret, ret_f) : load_bzimage(m, kernel_fd, &bp, ret, ret_f);
	if (!rc)
		rc = put_cmdline(m, cmdline, ret_f);
	if (!rc)
		rc = load_initrd(m, initrd_fd, &initrd_at, &initrd_n, ret_f);
	if (rc)
		return rc;
	if (elf)
		put_start_info(m, initrd_at, initrd_n);
	else
		put_boot_params(m, &bp, initrd_at, initrd_n);
	return RC_OK;
}

static struct kvm_segment segment(bool code, bool long_mode)
{
	return (struct kvm_segment){ .limit = 0xffffffff, .selector = code ? 0x10 : 0x18, .type = code ? 11 : 3,
				     .present = 1, .db = !(code && long_mode), .s = 1, .l = code && long_mode, .g = 1 };
}

static void put_page_tables(const struct memory *m)
{
	uint64_t *table = memory_at(m, PML4_AT, 6 * MEMORY_PAGE, true);

	memset(table, 0, 6 * MEMORY_PAGE);
	table[0] = (PML4_AT + MEMORY_PAGE) | 3;
	for (uint64_t i = 0; i < 4; i++)
		table[512 + i] = (PML4_AT + (2 + i) * MEMORY_PAGE) | 3;
	for (uint64_t i = 0; i < 2048; i++)
		table[1024 + i] = i << 21 | 0x83; /* present, writable, 2 MiB */
}

enum rc boot_registers(const struct memory *m, const struct boot_entry *e, struct kvm_regs *regs,
		       struct kvm_sregs *s, struct fault *ret_f)
{
	uint64_t gdt[4] = { 0, 0, e->long_mode ? 0x00af9b000000ffff : 0x00cf9b000000ffff, 0x00cf93000000ffff };
	void *to = memory_at(m, GDT_AT, sizeof(gdt), true);

	if (!to)
		return fault_set(ret_f, RC_INVALID, 0, "no memory");
	memcpy(to, gdt, sizeof(gdt));
	*regs = (struct kvm_regs){ .rip = e->rip, .rsi = e->rsi, .rbx = e->rbx, .rflags = 2, .rsp = 0x8ff0 };
	s->gdt = (struct kvm_dtable){ .base = GDT_AT, .limit = sizeof(gdt) - 1 };
	s->idt = (struct kvm_dtable){ .base = 0, .limit = 0 };
	s->cs = segment(true, e->long_mode);
	s->ds = s->es = s->fs = s->gs = s->ss = segment(false, e->long_mode);
	s->tr = (struct kvm_segment){ .limit = 0x67, .type = 11, .present = 1 };
	s->cr0 = 0x11; /* protected mode, extension type */
	if (e->long_mode) {
		put_page_tables(m);
		s->cr3 = PML4_AT;
		s->cr4 = 0x20;       /* PAE */
		s->cr0 = 0x80000011; /* paging */
		s->efer = 0x500;     /* LME, LMA */
	}
	return RC_OK;
}
