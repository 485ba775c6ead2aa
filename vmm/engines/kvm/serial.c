/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/serial.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/engines/kvm/limits.h"

#include <string.h>

enum { IER_RX = 1, IER_THRE = 2, LCR_DLAB = 0x80, LSR_DR = 1, LSR_THRE = 0x20, LSR_TEMT = 0x40, MCR_LOOP = 0x10 };

void serial_init(struct serial *s, int out_fd, int irq_fd)
{
	memset(s, 0, sizeof(*s));
	pthread_mutex_init(&s->lock, NULL);
	s->out_fd = out_fd;
	s->irq_fd = irq_fd;
	s->tokens = VMM_SERIAL_BYTES_PER_S;
	s->last_ms = now_ms();
}

static void raise_irq(struct serial *s)
{
	uint64_t one = 1;
	bool want = ((s->ier & IER_RX) && s->rx_n) || ((s->ier & IER_THRE) && s->thr_pending);

	if (want && s->irq_fd >= 0 && write(s->irq_fd, &one, sizeof(one)) < 0)
		return;
}

static void put_line(struct serial *s)
{
	uint64_t now = now_ms();

	s->tokens += (now - s->last_ms) * VMM_SERIAL_BYTES_PER_S / 1000;
	s->tokens = MIN_OF(s->tokens, (uint64_t)VMM_SERIAL_BYTES_PER_S);
	s->last_ms = now;
	if (s->tokens < s->line_n) {
		s->dropped += s->line_n;
	} else {
		s->tokens -= s->line_n;
		if (s->out_fd >= 0 && write(s->out_fd, s->line, s->line_n) < 0)
			s->dropped += s->line_n;
	}
	s->line_n = 0;
}

void serial_flush(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->line_n)
		put_line(s);
	pthread_mutex_unlock(&s->lock);
}

static uint8_t read_locked(struct serial *s, uint16_t offset)
{
	uint8_t v;

	switch (offset) {
	case 0:
		if (s->lcr & LCR_DLAB)
			return s->dll;
		if (!s->rx_n)
			return 0;
		v = s->rx[s->rx_head];
		s->rx_head = (s->rx_head + 1) % sizeof(s->rx);
		s->rx_n--;
		raise_irq(s);
		return v;
	case 1: return s->lcr & LCR_DLAB ? s->dlm : s->ier;
	case 2:
		v = s->fcr & 1 ? 0xc0 : 0;
		if ((s->ier & IER_RX) && s->rx_n)
			return v | 4;
		if ((s->ier & IER_THRE) && s->thr_pending) {
			s->thr_pending = false;
			return v | 2;
		}
		return v | 1;
	case 3: return s->lcr;
	case 4: return s->mcr;
	case 5: return (uint8_t)(LSR_THRE | LSR_TEMT | (s->rx_n ? LSR_DR : 0));
	case 6: return s->mcr & MCR_LOOP ? (uint8_t)((s->mcr & 0xc) << 4 | (s->mcr & 2) << 3 | (s->mcr & 1) << 5) : 0xb0;
	case 7: return s->scratch;
	default: return 0;
	}
}

uint8_t serial_read(struct serial *s, uint16_t offset)
{
	uint8_t v;

	pthread_mutex_lock(&s->lock);
	v = read_locked(s, offset);
	pthread_mutex_unlock(&s->lock);
	return v;
}

static void transmit(struct serial *s, uint8_t value)
{
	if (s->mcr & MCR_LOOP) {
		if (s->rx_n < sizeof(s->rx))
			s->rx[(s->rx_head + s->rx_n++) % sizeof(s->rx)] = value;
	} else {
		s->line[s->line_n++] = value;
		if (value == '\n' || s->line_n == sizeof(s->line) || s->out_fd == STDOUT_FILENO)
			put_line(s);
	}
	s->thr_pending = true;
	raise_irq(s);
}

void serial_write(struct serial *s, uint16_t offset, uint8_t value)
{
	pthread_mutex_lock(&s->lock);
	switch (offset) {
	case 0:
		if (s->lcr & LCR_DLAB)
			s->dll = value;
		else
			transmit(s, value);
		break;
	case 1:
		if (s->lcr & LCR_DLAB) {
			s->dlm = value;
			break;
		}
		if (value & ~s->ier & IER_THRE)
			s->thr_pending = true;
		s->ier = value & 0xf;
		raise_irq(s);
		break;
	case 2: s->fcr = value; break;
	case 3: s->lcr = value; break;
	case 4: s->mcr = value; break;
	case 7: s->scratch = value; break;
	default: break;
	}
	pthread_mutex_unlock(&s->lock);
}

void serial_input(struct serial *s, const void *data, unsigned int n)
{
	const uint8_t *at = data;

	pthread_mutex_lock(&s->lock);
	while (n-- && s->rx_n < sizeof(s->rx))
		s->rx[(s->rx_head + s->rx_n++) % sizeof(s->rx)] = *at++;
	raise_irq(s);
	pthread_mutex_unlock(&s->lock);
}

void serial_save(struct serial *s, struct wire *w)
{
	pthread_mutex_lock(&s->lock);
	wire_put_u8(w, s->ier);
	wire_put_u8(w, s->lcr);
	wire_put_u8(w, s->mcr);
	wire_put_u8(w, s->scratch);
	wire_put_u8(w, s->dll);
	wire_put_u8(w, s->dlm);
	wire_put_u8(w, s->fcr);
	wire_put_u8(w, s->thr_pending);
	pthread_mutex_unlock(&s->lock);
}

void serial_load(struct serial *s, struct wire *w)
{
	pthread_mutex_lock(&s->lock);
	s->ier = wire_get_u8(w);
	s->lcr = wire_get_u8(w);
	s->mcr = wire_get_u8(w);
	s->scratch = wire_get_u8(w);
	s->dll = wire_get_u8(w);
	s->dlm = wire_get_u8(w);
	s->fcr = wire_get_u8(w);
	s->thr_pending = wire_get_u8(w);
	/* A transmission that was under way when the state was saved must not wait for an interrupt that never comes. */
	s->thr_pending = true;
	raise_irq(s);
	pthread_mutex_unlock(&s->lock);
}
