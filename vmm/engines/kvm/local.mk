# SPDX-License-Identifier: Apache-2.0
# The VMM is static: its jail has an empty root.
nestboxlibexec_PROGRAMS += nestbox-vmm
nestbox_vmm_SOURCES = vmm/engines/kvm/acpi.c vmm/engines/kvm/acpi.h vmm/engines/kvm/balloon.c \
	vmm/engines/kvm/balloon.h vmm/engines/kvm/blk.c vmm/engines/kvm/blk.h vmm/engines/kvm/rate.c vmm/engines/kvm/rate.h \
	vmm/engines/kvm/boot.c vmm/engines/kvm/boot.h vmm/engines/kvm/limits.h vmm/engines/kvm/main.c \
	vmm/engines/kvm/memory.c vmm/engines/kvm/memory.h vmm/engines/kvm/net.c vmm/engines/kvm/net.h \
	vmm/engines/kvm/rng.c vmm/engines/kvm/rng.h vmm/engines/kvm/serial.c vmm/engines/kvm/serial.h \
	vmm/engines/kvm/control.c vmm/engines/kvm/control.h vmm/engines/kvm/messages.c vmm/engines/kvm/filter.c vmm/engines/kvm/filter.h \
	vmm/engines/kvm/fork.c vmm/engines/kvm/fork.h vmm/engines/kvm/serve.h vmm/engines/kvm/savefile.c vmm/engines/kvm/savefile.h vmm/engines/kvm/statefile.c \
	vmm/engines/kvm/snapshot.c vmm/engines/kvm/vcpu_state.c vmm/engines/kvm/vcpu.c vmm/engines/kvm/vcpu.h vmm/engines/kvm/virtio.c vmm/engines/kvm/virtio.h \
	vmm/engines/kvm/vm.c vmm/engines/kvm/vm.h
nestbox_vmm_LDADD = libnbschema.a libnbbase.a $(HARDEN_LIBS)
nestbox_vmm_LDFLAGS = $(NB_LDFLAGS) -static-pie -Wl,-z,relro,-z,now
nestbox_vmm_CFLAGS = $(AM_CFLAGS) -fPIE -pthread

# The broker's side, into the engines' library.
libnbengine_a_SOURCES += vmm/engines/kvm/client.c vmm/engines/kvm/control.h vmm/engines/kvm/messages.c \
	vmm/engines/limits.h vmm/engines/process.c vmm/engines/process.h vmm/engines/shape.c vmm/engines/shape.h vmm/engines/turns.c vmm/engines/turns.h vmm/engines/kvm/statefile.c vmm/engines/kvm/savefile.h \
	vmm/engines/kvm/client.h vmm/engines/kvm/stored.c

VIRTIO_TEST_SOURCES = tests/unit/virtio_guest.h vmm/engines/kvm/balloon.c vmm/engines/kvm/blk.c vmm/engines/kvm/net.c \
	vmm/engines/kvm/rate.c vmm/engines/kvm/rng.c vmm/engines/kvm/virtio.c vmm/engines/kvm/memory.c
check_PROGRAMS += tests/unit/test_vmm_virtio tests/unit/test_vmm_devices tests/fuzz/fuzz_virtio
tests_unit_test_vmm_virtio_SOURCES = tests/unit/test_vmm_virtio.c vmm/store/copy.c $(VIRTIO_TEST_SOURCES)
tests_unit_test_vmm_devices_SOURCES = tests/unit/test_vmm_devices.c $(VIRTIO_TEST_SOURCES)
tests_unit_test_vmm_devices_LDADD = $(UNIT_LIBS)
tests_unit_test_vmm_devices_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=now_us
tests_unit_test_vmm_virtio_LDADD = $(UNIT_LIBS)
tests_fuzz_fuzz_virtio_SOURCES = tests/fuzz/fuzz_virtio.c $(FUZZ_DRIVER) $(VIRTIO_TEST_SOURCES)
tests_fuzz_fuzz_virtio_LDADD = $(UNIT_LIBS)
tests_fuzz_fuzz_virtio_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)

# The whole machine on a KVM that keeps what is set and runs nothing.
VMM_FAKE_SOURCES = tests/unit/fake_kvm.c tests/unit/fake_kvm.h tests/unit/vmm_machine.h vmm/engines/kvm/acpi.c vmm/engines/kvm/balloon.c \
	vmm/engines/kvm/blk.c vmm/engines/kvm/boot.c vmm/engines/kvm/filter.c vmm/engines/kvm/fork.c vmm/engines/kvm/memory.c \
	vmm/engines/kvm/net.c vmm/engines/kvm/rate.c vmm/engines/kvm/rng.c vmm/engines/kvm/savefile.c vmm/engines/kvm/statefile.c vmm/engines/kvm/serial.c \
	vmm/engines/kvm/snapshot.c vmm/engines/kvm/vcpu.c vmm/engines/kvm/vcpu_state.c vmm/engines/kvm/virtio.c vmm/engines/kvm/vm.c
check_PROGRAMS += tests/unit/test_vmm_state
tests_unit_test_vmm_state_SOURCES = tests/unit/test_vmm_state.c $(VMM_FAKE_SOURCES)
tests_unit_test_vmm_state_LDADD = $(UNIT_LIBS) $(HARDEN_LIBS)

check_PROGRAMS += tests/unit/test_vmm_stored
tests_unit_test_vmm_stored_SOURCES = tests/unit/test_vmm_stored.c
tests_unit_test_vmm_stored_LDADD = $(ENGINE_LIBS) $(UNIT_LIBS) $(ENGINE_SYSLIBS)

check_PROGRAMS += tests/unit/test_vmm_pause
tests_unit_test_vmm_pause_SOURCES = tests/unit/test_vmm_pause.c $(VMM_FAKE_SOURCES)
tests_unit_test_vmm_pause_LDADD = $(UNIT_LIBS) $(HARDEN_LIBS)

check_PROGRAMS += tests/unit/test_vmm_nth
tests_unit_test_vmm_nth_SOURCES = tests/unit/test_vmm_nth.c tests/lib/wrap.h $(VMM_FAKE_SOURCES)
tests_unit_test_vmm_nth_LDADD = $(UNIT_LIBS) $(HARDEN_LIBS)
tests_unit_test_vmm_nth_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=reallocarray,--wrap=free \
	-Wl,--wrap=mmap,--wrap=eventfd,--wrap=epoll_create1,--wrap=epoll_ctl,--wrap=memfd_create,--wrap=ftruncate,--wrap=lseek \
	-Wl,--wrap=pread,--wrap=pwrite,--wrap=fsync,--wrap=pthread_create

check_PROGRAMS += tests/fuzz/fuzz_vmm_state tests/fuzz/fuzz_vmm_control
tests_fuzz_fuzz_vmm_state_SOURCES = tests/fuzz/fuzz_vmm_state.c $(FUZZ_DRIVER) $(VMM_FAKE_SOURCES)
tests_fuzz_fuzz_vmm_state_LDADD = $(UNIT_LIBS) $(HARDEN_LIBS)
tests_fuzz_fuzz_vmm_state_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)
tests_fuzz_fuzz_vmm_control_SOURCES = tests/fuzz/fuzz_vmm_control.c vmm/engines/kvm/messages.c $(FUZZ_DRIVER) $(VMM_FAKE_SOURCES)
tests_fuzz_fuzz_vmm_control_LDADD = $(UNIT_LIBS) $(HARDEN_LIBS)
tests_fuzz_fuzz_vmm_control_LDFLAGS = $(AM_LDFLAGS) $(FUZZ_LINK)

# What runs in the KVM bed (tests/kvmbed/robust.sh): a guest without an operating system, the program that drives nestbox-vmm, and a
# nestbox-vmm whose calls can be made to fail. Built there only: `make kvmbed-programs`.
EXTRA_PROGRAMS = tests/kvmbed/vmm-bed tests/kvmbed/nestbox-vmm-nth
tests_kvmbed_vmm_bed_SOURCES = tests/kvmbed/vmm_bed.c vmm/engines/kvm/messages.c
tests_kvmbed_vmm_bed_LDADD = $(UNIT_LIBS)
tests_kvmbed_nestbox_vmm_nth_SOURCES = tests/kvmbed/nth.c tests/lib/wrap.h $(nestbox_vmm_SOURCES)
tests_kvmbed_nestbox_vmm_nth_LDADD = $(nestbox_vmm_LDADD)
tests_kvmbed_nestbox_vmm_nth_CFLAGS = $(nestbox_vmm_CFLAGS)
tests_kvmbed_nestbox_vmm_nth_LDFLAGS = $(nestbox_vmm_LDFLAGS) -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=reallocarray \
	-Wl,--wrap=mmap,--wrap=eventfd,--wrap=epoll_create1,--wrap=epoll_ctl,--wrap=memfd_create,--wrap=ftruncate,--wrap=lseek \
	-Wl,--wrap=pread,--wrap=pwrite,--wrap=fsync,--wrap=dup,--wrap=pthread_create,--wrap=ioctl,--wrap=filter_main
CLEANFILES += $(EXTRA_PROGRAMS) tests/kvmbed/hostile.elf
EXTRA_DIST += tests/kvmbed/hostile.c tests/kvmbed/hostile.S
HOSTILE_CFLAGS = -m32 -march=i686 -mgeneral-regs-only -O2 -ffreestanding -fno-pic -fno-stack-protector -fcf-protection=none \
	-fno-asynchronous-unwind-tables -Wall -Wextra
tests/kvmbed/hostile.elf: $(srcdir)/tests/kvmbed/hostile.c $(srcdir)/tests/kvmbed/hostile.S
	$(AM_V_GEN)$(MKDIR_P) tests/kvmbed && gcc $(HOSTILE_CFLAGS) -nostdlib -static -no-pie -Wl,-m,elf_i386,-N,--build-id=none,-e,start \
		-Wl,-Ttext=0x1000000,--section-start=.note.pvh=0x1100000,--no-warn-rwx-segments -o $@.32 $(srcdir)/tests/kvmbed/hostile.S \
		$(srcdir)/tests/kvmbed/hostile.c && objcopy -I elf32-i386 -O elf64-x86-64 $@.32 $@ && rm $@.32
kvmbed-programs: tests/kvmbed/vmm-bed tests/kvmbed/nestbox-vmm-nth tests/kvmbed/hostile.elf
.PHONY: kvmbed-programs
