/* SPDX-License-Identifier: Apache-2.0 */
/* The PVH entry of hostile.c (32-bit, flat, no paging, start info in ebx) and its note. Linked at 16 MiB. */
	.section .note.pvh, "a", @note
	.long 4, 4, 18
	.asciz "Xen"
	.long start
	.section .text.start, "ax"
	.code32
	.globl start
start:
	cli
	movl $stack_end, %esp
	pushl %ebx
	call hostile
1:	hlt
	jmp 1b
	.section .bss
	.balign 16
	.skip 16384
stack_end:
	.section .note.GNU-stack, "", @progbits
