/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/engines/shape.h"

#include "base/cleanup.h"
#include "base/hex.h"

#include <errno.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum rc shape_of(const void *data, size_t n, char out[SHAPE_MAX], struct fault *ret_f)
{
	unsigned char digest[EVP_MAX_MD_SIZE];

	if (!EVP_Digest(data, n, digest, NULL, EVP_sha256(), NULL))
		return fault_set(ret_f, RC_NOMEM, 0, "sha256");
	hex_of(out, digest, (SHAPE_MAX - 1) / 2);
	return RC_OK;
}

enum rc shape_of_file(int fd, char out[SHAPE_MAX], struct fault *ret_f)
{
	struct stat st;
	void *data;
	enum rc rc;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0)
		return fault_set(ret_f, RC_INVALID, errno, "not a regular file with content");
	data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED)
		return fault_set(ret_f, RC_SYS, errno, "map a program");
	rc = shape_of(data, (size_t)st.st_size, out, ret_f);
	munmap(data, (size_t)st.st_size);
	return rc;
}
