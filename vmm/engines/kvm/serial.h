/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A 16550A for the kernel log at port 0x3f8, IRQ 4. Output goes to a descriptor through a token bucket of
 * VMM_SERIAL_BYTES_PER_S: a guest that floods it loses its own log, nothing else. Input comes from the console of
 * `nestbox-vmm run` only. Lock: serial->lock.
 */
#ifndef NB_VMM_SERIAL_H
#define NB_VMM_SERIAL_H

#include "base/wire.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define SERIAL_PORT 0x3f8u
#define SERIAL_GSI 4u

struct serial {
	pthread_mutex_t lock;
	int out_fd, irq_fd;
	uint8_t ier, lcr, mcr, scratch, dll, dlm, fcr;
	bool thr_pending;    /* a THRE interrupt is due */
	uint8_t rx[64];
	unsigned int rx_head, rx_n;
	uint8_t line[512];   /* gathered output, written at a newline or when full */
	unsigned int line_n;
	uint64_t tokens, last_ms, dropped;
};

void serial_init(struct serial *s, int out_fd, int irq_fd);
uint8_t serial_read(struct serial *s, uint16_t offset);
void serial_write(struct serial *s, uint16_t offset, uint8_t value);
void serial_input(struct serial *s, const void *data, unsigned int n);
void serial_flush(struct serial *s);
void serial_save(struct serial *s, struct wire *w);
void serial_load(struct serial *s, struct wire *w);

#endif
