/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile guest without an operating system: drives every virtio device far enough that its queues are live, then scribbles over
 * rings, registers, ports and interrupt controllers, for ever, chosen by a seed. The VMM may end it or go on; it may not crash.
 * 32-bit code without paging, made into a PVH kernel by hostile.S. Command line:
 * "seed=N", and " sleep=1" for one that does nothing. Or "console": says what it was given and echoes what is typed, in capitals, until q.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WINDOWS 0xd0000000u
#define WINDOW 0x1000u
#define DEVICES 12u
#define RINGS 0x2000000u   /* device i, queue q: rings at + (i * 4 + q) * 0x10000, data beside them */
#define RING_STEP 0x10000u
#define QUEUES 3u
#define MEMORY_TOP 0x4000000u /* 64 MiB */

struct start {
	u32 magic, version, flags, n_modules;
	u64 modlist, cmdline;
};

static u64 state;

static u32 rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (u32)(state >> 16);
}

static void out8(u16 port, u8 v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static u8 in8(u16 port)
{
	u8 v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static void say(const char *text)
{
	while (*text)
		out8(0x3f8, (u8)*text++);
}

static void say_number(u32 v)
{
	char digits[12];
	int at = 11;

	digits[at] = 0;
	do {
		digits[--at] = (char)('0' + v % 10);
		v /= 10;
	} while (v);
	say(digits + at);
}

static volatile u32 *reg(u32 device, u32 offset)
{
	return (volatile u32 *)(WINDOWS + device * WINDOW + offset);
}

static u32 ring(u32 device, u32 queue)
{
	return RINGS + (device * 4 + queue) * RING_STEP;
}

/* As a driver would: what is offered, or a part of it; all queues, of some size. */
static void begin(u32 device)
{
	u32 features[2];

	*reg(device, 0x70) = 0;
	*reg(device, 0x70) = 1;
	*reg(device, 0x70) = 3;
	for (u32 i = 0; i < 2; i++) {
		*reg(device, 0x14) = i;
		features[i] = *reg(device, 0x10);
		if (rnd() % 4 == 0)
			features[i] &= rnd();
		if (i)
			features[i] |= 1; /* VERSION_1 */
		*reg(device, 0x24) = i;
		*reg(device, 0x20) = features[i];
	}
	*reg(device, 0x70) = 11;
	for (u32 q = 0; q < QUEUES; q++) {
		u32 at = ring(device, q);

		*reg(device, 0x30) = q;
		*reg(device, 0x38) = 1u << (rnd() % 9);
		*reg(device, 0x80) = at;
		*reg(device, 0x84) = 0;
		*reg(device, 0x90) = at + 0x2000;
		*reg(device, 0x94) = 0;
		*reg(device, 0xa0) = at + 0x3000;
		*reg(device, 0xa4) = 0;
		*reg(device, 0x44) = 1;
		*(volatile u16 *)(at + 0x2002) = 0;
	}
	*reg(device, 0x70) = 15;
}

static u64 any_address(u32 device, u32 queue)
{
	switch (rnd() % 10) {
	case 0: return ring(device, queue) + rnd() % 0x4000;
	case 1: return MEMORY_TOP - rnd() % 0x2000;
	case 2: return 0xffffffffffffffffull - rnd() % 0x2000;
	case 3: return 0x100000000ull + rnd() % 0x100000;
	case 4: return WINDOWS + rnd() % 0x10000;
	case 5: return (u64)rnd() << 32 | rnd();
	default: return ring(device, queue) + 0x8000 + rnd() % 0x8000;
	}
}

static u32 any_length(void)
{
	static const u32 usual[] = { 0, 1, 4, 12, 16, 17, 32, 512, 513, 4096, 65562, 0x200000, 0x7fffffff, 0xffffffff };

	return rnd() % 4 ? usual[rnd() % (sizeof(usual) / sizeof(usual[0]))] : rnd();
}

/* A chain that a device may well take: a disk's head, page numbers, a frame's header. */
static void descriptors(u32 device, u32 queue)
{
	u32 at = ring(device, queue);

	for (u32 i = 0; i < 8; i++) {
		volatile u32 *d = (volatile u32 *)(at + 16 * (rnd() % 32));
		u64 addr = any_address(device, queue);

		d[0] = (u32)addr;
		d[1] = (u32)(addr >> 32);
		d[2] = any_length();
		d[3] = (rnd() % 8 ? rnd() % 4 : rnd() & 0xffff) | (rnd() % 8 ? rnd() % 32 : rnd()) << 16;
	}
	/* Often enough a request in good order, so that what is behind the checks is reached too. */
	if (rnd() % 2) {
		volatile u32 *d = (volatile u32 *)at, *head = (volatile u32 *)(at + 0x8000);

		head[0] = rnd() % 16;
		head[1] = rnd();
		head[2] = rnd() % 4 ? rnd() % 4096 : rnd();
		head[3] = rnd() % 8 ? 0 : rnd();
		head[4] = rnd() % 64;
		head[5] = 0;
		head[6] = rnd() % 64;
		head[7] = rnd() % 4;
		d[0] = at + 0x8000;
		d[1] = 0;
		d[2] = rnd() % 2 ? 16 : 32;
		d[3] = 1 | 1 << 16;
		d[4] = at + 0x9000;
		d[5] = 0;
		d[6] = rnd() % 2 ? 513 : 4096 * (rnd() % 8) + 1;
		d[7] = 2;
	}
}

static void offer(u32 device, u32 queue)
{
	volatile u16 *avail = (volatile u16 *)(ring(device, queue) + 0x2000);
	u16 n = (u16)(1 + rnd() % 8);

	for (u16 i = 0; i < n; i++)
		avail[2 + (avail[1] + i) % 256] = (u16)(rnd() % 2 ? 0 : rnd() % 64);
	avail[0] = (u16)rnd();
	avail[1] = (u16)(rnd() % 32 ? avail[1] + n : rnd());
}

static void any_register(u32 device)
{
	u32 offset = rnd() % 4 ? (rnd() % 64) * 4 : rnd() % WINDOW;
	volatile u8 *at = (volatile u8 *)reg(device, 0) + offset;

	switch (rnd() % 8) {
	case 0: (void)*at; break;
	case 1: (void)*(volatile u16 *)at; break;
	case 2: (void)*(volatile u32 *)at; break;
	case 3: *at = (u8)rnd(); break;
	case 4: *(volatile u16 *)at = (u16)rnd(); break;
	default: *(volatile u32 *)at = rnd() % 4 ? rnd() % 16 : rnd(); break;
	}
}

static void elsewhere(void)
{
	static const u16 ports[] = { 0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71, 0xcf8, 0xcfc, 0x3fa, 0x3fb, 0x3fc, 0x3fe, 0x3ff };

	u32 at = ring(rnd() % DEVICES, rnd() % QUEUES), n = rnd() % 3000;

	switch (rnd() % 8) {
	case 0: out8(ports[rnd() % (sizeof(ports) / sizeof(ports[0]))], (u8)rnd()); break;
	case 1: (void)in8((u16)rnd()); break;
	case 2: *(volatile u32 *)(0xfec00000u + (rnd() % 2) * 0x10) = rnd(); break; /* I/O APIC */
	case 3: *(volatile u32 *)(0xfee00000u + (rnd() % 64) * 16) = rnd() & 0x000300ff; break;
	case 4: *(volatile u32 *)(WINDOWS - 0x10000u + rnd() % 0x40000u) = rnd(); break; /* around the windows, too */
	/* By strings, into rings and across windows: a pause comes in between. */
	case 5: __asm__ volatile("rep insb" : "+D"(at), "+c"(n) : "d"((u16)(0x3f8 + rnd() % 8)) : "memory"); break;
	case 6:
		at = WINDOWS + (rnd() % DEVICES) * WINDOW + WINDOW - 2;
		*(volatile u32 *)at = rnd();
		(void)*(volatile u32 *)at;
		break;
	default: (void)*(volatile u32 *)(0xc0000000u + rnd() % 0x30000000u); break;
	}
}

/* By a string instruction: one that comes out of the processor once for each byte. */
static void say_string(const char *text, u32 n)
{
	__asm__ volatile("rep outsb" : "+S"(text), "+c"(n) : "d"(0x3f8) : "memory");
}

static void console(const struct start *s)
{
	const u64 *module = (const u64 *)(u32)s->modlist;
	u8 c;

	say_string("console: ", 9);
	if (s->n_modules) {
		say("initrd of ");
		say_number((u32)module[1]);
		say(" bytes begins with ");
		say_string((const char *)(u32)module[0], 4);
		say(", ");
	}
	for (u32 i = 0; i < DEVICES; i++)
		if (*reg(i, 0) == 0x74726976 && *reg(i, 8) == 2) {
			say("disk of ");
			say_number(*reg(i, 0x100));
			say(" sectors, ");
		}
	say("type\n");
	for (;;) {
		while (!(in8(0x3f8 + 5) & 1))
			;
		c = in8(0x3f8);
		if (c == 'q')
			break;
		out8(0x3f8, c >= 'a' && c <= 'z' ? c - 32 : c);
	}
	say("bye\n");
	out8(0x64, 0xfe);
}

void hostile(const struct start *s)
{
	const char *text = (const char *)(u32)s->cmdline;
	u32 seed = 0, sleeps;

	if (*text == 'c') {
		console(s);
		return;
	}
	for (; *text && *text != ' '; text++)
		if (*text >= '0' && *text <= '9')
			seed = seed * 10 + (u32)(*text - '0');
	sleeps = *text == ' ';
	state = 0x9e3779b97f4a7c15ull ^ (u64)seed * 0x2545f4914f6cdd1dull;
	if (sleeps)
		for (;;)
			__asm__ volatile("hlt");
	say("hostile: seed ");
	say_number(seed);
	say("\n");
	for (u32 i = 0; i < DEVICES; i++)
		begin(i);
	for (u32 n = 1;; n++) {
		u32 device = rnd() % DEVICES, queue = rnd() % QUEUES;

		switch (rnd() % 16) {
		case 0: begin(device); break;
		case 1: any_register(device); break;
		case 2: elsewhere(); break;
		case 3: *(volatile u32 *)(ring(device, queue) + (rnd() % 0x1000) * 4) = rnd(); break;
		case 4:
		case 5:
		case 6: descriptors(device, queue); break;
		case 7:
			/* A device that was stopped for what it was given begins anew. */
			if (*reg(device, 0x70) & 64)
				begin(device);
			break;
		default:
			descriptors(device, queue);
			offer(device, queue);
			*reg(device, 0x50) = queue;
			break;
		}
		if (n % 50 == 0) {
			say("hostile: ");
			say_number(n);
			say("\n");
		}
	}
}
