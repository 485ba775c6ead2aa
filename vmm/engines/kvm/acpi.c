/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/acpi.h"

#include "base/wire.h"
#include "vmm/engines/kvm/limits.h"
#include "vmm/engines/kvm/serial.h"
#include "vmm/engines/kvm/virtio.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define APIC_BASE 0xfee00000u
#define IOAPIC_BASE 0xfec00000u
#define HEADER 36u
#define DSDT_MAX 8192

/* --- AML, as far as we speak it ------------------------------------------------------------------------------------
 * A package (scope, device, method, buffer) has its length in front: open() leaves four bytes for it, close() fills it in
 * with the four-byte form of PkgLength (20.2.4), which may describe any length.
 */

static void raw(struct wire *w, const void *p, size_t n)
{
	const uint8_t *b = p;

	for (size_t i = 0; i < n; i++)
		wire_put_u8(w, b[i]);
}

static uint8_t *pkg_open(struct wire *w)
{
	uint8_t *at = w->at;

	wire_put_u32(w, 0);
	return at;
}

static void pkg_close(struct wire *w, uint8_t *at)
{
	size_t n;

	if (!wire_ok(w))
		return;
	n = (size_t)(w->at - at);
	at[0] = (uint8_t)(0xc0 | (n & 0xf));
	at[1] = (uint8_t)(n >> 4);
	at[2] = (uint8_t)(n >> 12);
	at[3] = (uint8_t)(n >> 20);
}

static uint8_t *device_open(struct wire *w, const char name[4])
{
	uint8_t *at;

	wire_put_u8(w, 0x5b); /* ExtOpPrefix */
	wire_put_u8(w, 0x82); /* DeviceOp */
	at = pkg_open(w);
	raw(w, name, 4);
	return at;
}

static void name_op(struct wire *w, const char name[4])
{
	wire_put_u8(w, 0x08);
	raw(w, name, 4);
}

static void dword(struct wire *w, uint32_t v)
{
	wire_put_u8(w, 0x0c);
	wire_put_u32(w, v);
}

static void string(struct wire *w, const char *s)
{
	wire_put_u8(w, 0x0d);
	raw(w, s, strlen(s) + 1);
}

/* Buffer with a resource template: BufferOp PkgLength size bytes. */
struct template {
	uint8_t *pkg, *size;
};

static struct template template_open(struct wire *w)
{
	struct template t;

	name_op(w, "_CRS");
	wire_put_u8(w, 0x11);
	t.pkg = pkg_open(w);
	wire_put_u8(w, 0x0b); /* WordPrefix */
	t.size = w->at;
	wire_put_u16(w, 0);
	return t;
}

static void template_close(struct wire *w, struct template t)
{
	size_t n;

	wire_put_u16(w, 0x0079); /* EndTag, checksum not used */
	if (!wire_ok(w))
		return;
	n = (size_t)(w->at - t.size) - 2;
	t.size[0] = (uint8_t)n;
	t.size[1] = (uint8_t)(n >> 8);
	pkg_close(w, t.pkg);
}

static void res_memory(struct wire *w, uint32_t base, uint32_t n)
{
	wire_put_u8(w, 0x86); /* Memory32Fixed */
	wire_put_u16(w, 9);
	wire_put_u8(w, 1); /* read-write */
	wire_put_u32(w, base);
	wire_put_u32(w, n);
}

static void res_interrupt(struct wire *w, uint32_t gsi)
{
	wire_put_u8(w, 0x89); /* Extended Interrupt */
	wire_put_u16(w, 6);
	wire_put_u8(w, 3); /* consumer, edge, active high, exclusive */
	wire_put_u8(w, 1);
	wire_put_u32(w, gsi);
}

static void res_io(struct wire *w, uint16_t port, uint8_t n)
{
	wire_put_u8(w, 0x47); /* I/O port descriptor */
	wire_put_u8(w, 1);    /* 16-bit decode */
	wire_put_u16(w, port);
	wire_put_u16(w, port);
	wire_put_u8(w, 1);
	wire_put_u8(w, n);
}

static void virtio_device_aml(struct wire *w, unsigned int i)
{
	char name[5];
	struct template t;
	uint8_t *at;

	snprintf(name, sizeof(name), "VR%02u", i % 100);
	at = device_open(w, name);
	name_op(w, "_HID");
	string(w, "LNRO0005");
	name_op(w, "_UID");
	dword(w, i);
	name_op(w, "_CCA");
	dword(w, 1);
	t = template_open(w);
	res_memory(w, (uint32_t)(VIRTIO_MMIO_BASE + i * VIRTIO_WINDOW), VIRTIO_WINDOW);
	res_interrupt(w, VIRTIO_IRQ_BASE + i);
	template_close(w, t);
	pkg_close(w, at);
}

static void com_aml(struct wire *w)
{
	uint8_t *at = device_open(w, "COM1");
	struct template t;

	name_op(w, "_HID");
	dword(w, 0x0105d041); /* EISAID("PNP0501") */
	name_op(w, "_UID");
	dword(w, 1);
	t = template_open(w);
	res_io(w, SERIAL_PORT, 8);
	res_interrupt(w, SERIAL_GSI);
	template_close(w, t);
	pkg_close(w, at);
}

/* Where the generation id lies (Microsoft's VMGENID specification), and the event that says it changed. */
static void genid_aml(struct wire *w)
{
	uint8_t *at = device_open(w, "GENI"), *pkg;
	struct template t;

	name_op(w, "_HID");
	string(w, "NBXVGEN0");
	name_op(w, "_CID");
	string(w, "VM_Gen_Counter");
	name_op(w, "_DDN");
	string(w, "VM_Gen_Counter");
	name_op(w, "ADDR");
	wire_put_u8(w, 0x12); /* PackageOp */
	pkg = pkg_open(w);
	wire_put_u8(w, 2);
	dword(w, (uint32_t)ACPI_GENID);
	dword(w, 0);
	pkg_close(w, pkg);
	pkg_close(w, at);

	at = device_open(w, "GED0");
	name_op(w, "_HID");
	string(w, "ACPI0013");
	t = template_open(w);
	res_interrupt(w, ACPI_GED_GSI);
	template_close(w, t);
	wire_put_u8(w, 0x14); /* MethodOp */
	pkg = pkg_open(w);
	raw(w, "_EVT", 4);
	wire_put_u8(w, 1);    /* one argument, not serialized */
	wire_put_u8(w, 0x86); /* Notify (\_SB.GENI, 0x80) */
	wire_put_u8(w, 0x5c);
	wire_put_u8(w, 0x2e);
	raw(w, "_SB_GENI", 8);
	wire_put_u8(w, 0x0a);
	wire_put_u8(w, 0x80);
	pkg_close(w, pkg);
	pkg_close(w, at);
}

static size_t dsdt(uint8_t *mem, unsigned int n_devices)
{
	struct wire w;
	uint8_t *scope, *s5;

	wire_init(&w, mem, DSDT_MAX);
	for (unsigned int i = 0; i < HEADER; i++)
		wire_put_u8(&w, 0);
	wire_put_u8(&w, 0x10); /* ScopeOp */
	scope = pkg_open(&w);
	raw(&w, "\\_SB_", 5);
	com_aml(&w);
	for (unsigned int i = 0; i < n_devices; i++)
		virtio_device_aml(&w, i);
	genid_aml(&w);
	pkg_close(&w, scope);
	name_op(&w, "_S5_");
	wire_put_u8(&w, 0x12);
	s5 = pkg_open(&w);
	wire_put_u8(&w, 1);
	wire_put_u8(&w, 0x0a);
	wire_put_u8(&w, ACPI_SLP_TYP_S5);
	pkg_close(&w, s5);
	assert(wire_ok(&w));
	return wire_len(&w);
}

/* --- tables -------------------------------------------------------------------------------------------------------- */

static uint8_t checksum(const uint8_t *p, size_t n)
{
	uint8_t sum = 0;

	while (n--)
		sum = (uint8_t)(sum + *p++);
	return (uint8_t)-sum;
}

static void header(uint8_t *t, const char sig[4], size_t n, uint8_t revision)
{
	uint32_t len = (uint32_t)n, one = 1;

	memcpy(t, sig, 4);
	memcpy(t + 4, &len, 4);
	t[8] = revision;
	t[9] = 0;
	memcpy(t + 10, "NESTBX", 6);
	memcpy(t + 16, "NESTBXVM", 8);
	memcpy(t + 24, &one, 4);
	memcpy(t + 28, "NBX ", 4);
	memcpy(t + 32, &one, 4);
	t[9] = checksum(t, n);
}

static void gas(uint8_t *t, uint16_t port)
{
	t[0] = 1; /* system I/O */
	t[1] = 8;
	t[3] = 1; /* byte access */
	memcpy(t + 4, &port, 2);
}

static size_t fadt(uint8_t *t, uint64_t dsdt_at)
{
	/* WBINVD, sleep button and power button as devices, reset register, hardware-reduced */
	uint32_t flags = 1u | 1u << 4 | 1u << 5 | 1u << 10 | 1u << 20, low = (uint32_t)dsdt_at;
	uint16_t boot_arch = 1u << 2 | 1u << 5; /* no VGA, no CMOS clock */

	memset(t, 0, 276);
	memcpy(t + 40, &low, 4);
	memcpy(t + 109, &boot_arch, 2);
	memcpy(t + 112, &flags, 4);
	gas(t + 116, 0x64); /* reset: what the keyboard controller would do */
	t[128] = 0xfe;
	t[131] = 5; /* minor version */
	memcpy(t + 140, &dsdt_at, 8);
	gas(t + 244, ACPI_SLEEP_PORT);
	gas(t + 256, ACPI_SLEEP_PORT + 1);
	memcpy(t + 268, "NESTBX\0\0", 8);
	header(t, "FACP", 276, 6);
	return 276;
}

static size_t madt(uint8_t *t, unsigned int cpus)
{
	struct wire w;

	wire_init(&w, t, 1024);
	for (unsigned int i = 0; i < HEADER; i++)
		wire_put_u8(&w, 0);
	wire_put_u32(&w, APIC_BASE);
	wire_put_u32(&w, 0);
	for (unsigned int i = 0; i < cpus; i++) {
		wire_put_u8(&w, 0); /* local APIC */
		wire_put_u8(&w, 8);
		wire_put_u8(&w, (uint8_t)i);
		wire_put_u8(&w, (uint8_t)i);
		wire_put_u32(&w, 1); /* enabled */
	}
	wire_put_u8(&w, 1); /* I/O APIC */
	wire_put_u8(&w, 12);
	wire_put_u8(&w, 0);
	wire_put_u8(&w, 0);
	wire_put_u32(&w, IOAPIC_BASE);
	wire_put_u32(&w, 0);
	header(t, "APIC", wire_len(&w), 4);
	return wire_len(&w);
}

static void rsdp(uint8_t *t, uint64_t xsdt_at)
{
	uint32_t len = 36;

	memset(t, 0, 36);
	memcpy(t, "RSD PTR ", 8);
	memcpy(t + 9, "NESTBX", 6);
	t[15] = 2;
	memcpy(t + 20, &len, 4);
	memcpy(t + 24, &xsdt_at, 8);
	t[8] = checksum(t, 20);
	t[32] = checksum(t, 36);
}

enum rc acpi_write(const struct memory *m, unsigned int cpus, unsigned int n_devices, struct fault *ret_f)
{
	uint8_t *area = memory_at(m, ACPI_RSDP, ACPI_TABLES_END - ACPI_RSDP, true);
	size_t at = 64, n, xsdt_at;
	uint64_t tables[2], dsdt_addr;

	if (!area)
		return fault_set(ret_f, RC_INVALID, 0, "memory is too small for ACPI tables");
	dsdt_addr = ACPI_RSDP + at;
	n = dsdt(area + at, n_devices);
	header(area + at, "DSDT", n, 2);
	at = (at + n + 63) & ~(size_t)63;
	tables[0] = ACPI_RSDP + at;
	at = (at + fadt(area + at, dsdt_addr) + 63) & ~(size_t)63;
	tables[1] = ACPI_RSDP + at;
	at = (at + madt(area + at, cpus) + 63) & ~(size_t)63;
	xsdt_at = at;
	memset(area + at, 0, HEADER);
	memcpy(area + at + HEADER, tables, sizeof(tables));
	header(area + at, "XSDT", HEADER + sizeof(tables), 1);
	rsdp(area, ACPI_RSDP + xsdt_at);
	return RC_OK;
}
