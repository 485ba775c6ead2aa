/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/kvm/blk.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define SECTOR 512u
#define DISCARD_SECTORS_MAX (1u << 22) /* of one segment: 2 GiB, a hole costs the host little */
#define DISCARD_SEGMENTS_MAX 16u

static enum rc file_sectors(int fd, uint64_t *ret, struct fault *ret_f)
{
	struct stat st;
	off_t end;

	if (fstat(fd, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "stat disk");
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return fault_set(ret_f, RC_INVALID, 0, "disk is neither a file nor a block device");
	end = lseek(fd, 0, SEEK_END);
	if (end < 0 || end % SECTOR)
		return fault_set(ret_f, RC_INVALID, 0, "disk size is not a multiple of %u", SECTOR);
	*ret = (uint64_t)end / SECTOR;
	return RC_OK;
}

enum rc blk_init(struct blk *b, int fd, bool read_only, const char *serial, struct fault *ret_f)
{
	enum rc rc = file_sectors(fd, &b->sectors, ret_f);

	b->fd = fd; /* owned even when this fails */
	if (rc)
		return rc;
	b->read_only = read_only;
	memset(b->serial, 0, sizeof(b->serial));
	memcpy(b->serial, serial, MIN_OF(strlen(serial), sizeof(b->serial)));
	return RC_OK;
}

static void fill_config(struct virtio_device *d)
{
	const struct blk *b = d->state;
	struct virtio_blk_config c = {
		.capacity = b->sectors,
		.seg_max = VMM_BLK_CHAIN_MAX - 2, /* and header and status: fits into the ring where the driver has no table for it */
		.blk_size = SECTOR,
		.max_discard_sectors = DISCARD_SECTORS_MAX,
		.max_discard_seg = DISCARD_SEGMENTS_MAX,
		.discard_sector_alignment = 8,
		.max_write_zeroes_sectors = DISCARD_SECTORS_MAX,
		.max_write_zeroes_seg = DISCARD_SEGMENTS_MAX,
		.write_zeroes_may_unmap = 1,
	};

	d->config_n = (uint32_t)MIN_OF(sizeof(c), sizeof(d->config));
	memcpy(d->config, &c, d->config_n);
}

enum rc blk_resized(struct virtio_device *d, struct fault *ret_f)
{
	struct blk *b = d->state;
	enum rc rc;

	pthread_mutex_lock(&d->lock);
	rc = file_sectors(b->fd, &b->sectors, ret_f);
	if (!rc) {
		fill_config(d);
		virtio_config_changed(d);
	}
	pthread_mutex_unlock(&d->lock);
	return rc;
}

static bool range_ok(const struct blk *b, uint64_t sector, uint64_t bytes)
{
	return !(bytes % SECTOR) && sector <= b->sectors && bytes / SECTOR <= b->sectors - sector;
}

static ssize_t transfer(const struct blk *b, const struct iovec *iov, unsigned int n, uint64_t at, bool write)
{
	ssize_t got;

	do
		got = write ? pwritev(b->fd, iov, (int)n, (off_t)at) : preadv(b->fd, iov, (int)n, (off_t)at);
	while (got < 0 && errno == EINTR);
	return got;
}

/* preadv and pwritev may be short. Of its own, for the array that would be cleared for each request. */
__attribute__((noinline)) static uint8_t move_rest(const struct blk *b, const struct iovec *iov, unsigned int n, uint64_t done,
						   uint64_t bytes, uint64_t at, bool write)
{
	struct iovec part[VMM_BLK_CHAIN_MAX];

	while (done < bytes) {
		unsigned int k = iov_slice(iov, n, done, bytes - done, part);
		ssize_t got = transfer(b, part, k, at + done, write);

		if (got <= 0)
			return VIRTIO_BLK_S_IOERR;
		done += (uint64_t)got;
	}
	return VIRTIO_BLK_S_OK;
}

/* All bytes or an error; iov has exactly so many. */
static uint8_t move(const struct blk *b, const struct iovec *iov, unsigned int n, uint64_t bytes, uint64_t sector, bool write)
{
	ssize_t got = bytes ? transfer(b, iov, n, sector * SECTOR, write) : 0;

	if (got < 0)
		return VIRTIO_BLK_S_IOERR;
	return (uint64_t)got == bytes ? VIRTIO_BLK_S_OK : move_rest(b, iov, n, (uint64_t)got, bytes, sector * SECTOR, write);
}

static uint8_t trim(const struct blk *b, const struct virtio_chain *c, bool zero)
{
	struct virtio_blk_discard_write_zeroes seg;
	uint64_t bytes = c->out_bytes;

	if (!bytes || bytes % sizeof(seg) || bytes / sizeof(seg) > DISCARD_SEGMENTS_MAX)
		return VIRTIO_BLK_S_UNSUPP;
	for (uint64_t at = 0; at < bytes; at += sizeof(seg)) {
		int mode = FALLOC_FL_KEEP_SIZE;

		iov_read(c->out, c->n_out, at, &seg, sizeof(seg));
		if (seg.num_sectors > DISCARD_SECTORS_MAX || (seg.flags & ~1u) || (!zero && seg.flags))
			return VIRTIO_BLK_S_UNSUPP;
		if (!range_ok(b, seg.sector, (uint64_t)seg.num_sectors * SECTOR))
			return VIRTIO_BLK_S_IOERR;
		if (!seg.num_sectors)
			continue;
		mode |= zero && !(seg.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) ? FALLOC_FL_ZERO_RANGE :
										  FALLOC_FL_PUNCH_HOLE;
		/* Where the file system has no ZERO_RANGE a hole reads as zeroes too. */
		if (fallocate(b->fd, mode, (off_t)(seg.sector * SECTOR), (off_t)seg.num_sectors * SECTOR) < 0 &&
		    fallocate(b->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, (off_t)(seg.sector * SECTOR),
			      (off_t)seg.num_sectors * SECTOR) < 0)
			return zero ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
	}
	return VIRTIO_BLK_S_OK;
}

/* Of a request whose header and status byte are not in the chain any more; *written counts data bytes put into guest memory. */
static uint8_t serve(const struct blk *b, const struct virtio_blk_outhdr *head, const struct virtio_chain *c, uint32_t *written)
{
	if (c->in_bytes > VMM_BLK_REQUEST_MAX || c->out_bytes > VMM_BLK_REQUEST_MAX)
		return VIRTIO_BLK_S_IOERR;
	if (b->read_only && head->type != VIRTIO_BLK_T_IN && head->type != VIRTIO_BLK_T_GET_ID &&
	    head->type != VIRTIO_BLK_T_FLUSH)
		return VIRTIO_BLK_S_IOERR;
	switch (head->type) {
	case VIRTIO_BLK_T_IN:
		if (!range_ok(b, head->sector, c->in_bytes))
			return VIRTIO_BLK_S_IOERR;
		*written = (uint32_t)c->in_bytes;
		return move(b, c->in, c->n_in, c->in_bytes, head->sector, false);
	case VIRTIO_BLK_T_OUT:
		if (!range_ok(b, head->sector, c->out_bytes))
			return VIRTIO_BLK_S_IOERR;
		return move(b, c->out, c->n_out, c->out_bytes, head->sector, true);
	case VIRTIO_BLK_T_FLUSH: return fdatasync(b->fd) < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_GET_ID:
		*written = (uint32_t)iov_write(c->in, c->n_in, 0, b->serial, MIN_OF(c->in_bytes, sizeof(b->serial)));
		return VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_DISCARD: return trim(b, c, false);
	case VIRTIO_BLK_T_WRITE_ZEROES: return trim(b, c, true);
	default: return VIRTIO_BLK_S_UNSUPP;
	}
}

/* The first n bytes of what the device reads are done with. */
static void out_skip(struct virtio_chain *c, size_t n)
{
	c->out_bytes -= n;
	for (; c->n_out && n >= c->out->iov_len; c->out++, c->n_out--)
		n -= c->out->iov_len;
	if (n)
		*c->out = (struct iovec){ (uint8_t *)c->out->iov_base + n, c->out->iov_len - n };
}

/* One request: header from the front, status byte at the very end, wherever the driver's descriptors begin and end. */
static void answer(struct virtio_device *d, unsigned int q, struct virtio_chain *c)
{
	const struct blk *b = d->state;
	struct iovec *last = &c->in[c->n_in - 1];
	uint8_t *status = (uint8_t *)last->iov_base + last->iov_len - 1;
	struct virtio_blk_outhdr head;
	uint32_t written = 0;

	iov_read(c->out, c->n_out, 0, &head, sizeof(head));
	out_skip(c, sizeof(head));
	last->iov_len--;
	c->in_bytes--;
	*status = serve(b, &head, c, &written);
	last->iov_len++;
	virtio_done(d, q, c, written + 1);
}

/*
 * Requests that were offered together are mostly of one large read or write, whose reader waits for the last of them: they are published together and
 * are one interrupt at most. A disk that takes its time answers each as it comes, so that the driver works on one while the
 * next is served. Kicks cost nothing meanwhile: the driver is asked for one only when its ring is empty.
 */
static void blk_kick(struct virtio_device *d, unsigned int q)
{
	struct blk *b = d->state;
	struct virtio_chain c;
	unsigned int n = 0;
	uint64_t began = 0;

	for (;;) {
		uint64_t bytes;

		d->queues[q].wait_ms = rate_limited(&b->rate) ? rate_wait_ms(&b->rate, now_us()) : 0;
		if (d->queues[q].wait_ms || !virtio_pop(d, q, &c))
			break;
		/* Without a byte for the status there is no way to answer at all. */
		if (!c.in_bytes || c.out_bytes < sizeof(struct virtio_blk_outhdr)) {
			virtio_broken(d);
			break;
		}
		if (!n++)
			began = now_us();
		bytes = c.out_bytes + c.in_bytes;
		answer(d, q, &c);
		rate_charge(&b->rate, 1, bytes);
		if (n == VMM_BLK_BATCH_MAX || now_us() - began >= VMM_BLK_BATCH_US) {
			virtio_publish(d, q);
			virtio_flush(d, q);
			n = 0;
		}
	}
	if (n) {
		virtio_publish(d, q);
		virtio_flush(d, q);
	}
}

static const struct virtio_ops blk_rw_ops = {
	.id = VIRTIO_ID_BLK,
	.n_queues = 1,
	.queue_max = VMM_BLK_QUEUE_SIZE,
	.chain_max = VMM_BLK_CHAIN_MAX,
	.features = 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_FLUSH |
		    1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES,
	.kick = blk_kick,
};

static const struct virtio_ops blk_ro_ops = {
	.id = VIRTIO_ID_BLK,
	.n_queues = 1,
	.queue_max = VMM_BLK_QUEUE_SIZE,
	.chain_max = VMM_BLK_CHAIN_MAX,
	.features = 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_RO,
	.kick = blk_kick,
};

void blk_device_init(struct virtio_device *d, struct blk *b, struct memory *memory, unsigned int index)
{
	virtio_init(d, b->read_only ? &blk_ro_ops : &blk_rw_ops, memory, index, b);
	fill_config(d);
}
