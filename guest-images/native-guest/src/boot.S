# From the PVH entry point (32-bit, ring 0, paging off) to ring 3 in long mode, and the few ring-0 handlers.
#
# Ring 0 is interpreted on software-virtualised KVM, about a million instructions a second, and its interpreter
# stops on some instructions (ltr among them). So the page tables are laid out by the assembler, the IDT is
# filled in by ring 3, and each handler is a few instructions.

        .section .note.pvh, "a", @note
        .balign 4
        .long 4, 4, 18                  # namesz, descsz, XEN_ELFNOTE_PHYS32_ENTRY
        .asciz "Xen"
        .long start32

        .section .boot.text, "ax"
        .code32
        .globl start32
start32:
        cli
        cld
        lgdtl gdt_pointer
        movw $0x10, %ax                 # every data segment anew: the loader's hidden state is not to be trusted
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %fs
        movw %ax, %gs
        movw %ax, %ss
        ljmpl $0x30, $start32_reloaded
start32_reloaded:
        movl %ebx, boot_start_info
        movl $pml4, %eax
        movl %eax, %cr3
        movl $0x620, %eax               # PAE, OSFXSR, OSXMMEXCPT
        movl %eax, %cr4
        movl $0xc0000080, %ecx          # EFER.LME
        movl $0x100, %eax
        xorl %edx, %edx
        wrmsr
        movl $0x80000033, %eax          # PG, NE, ET, MP, PE
        movl %eax, %cr0
        ljmpl $0x08, $start64

        .code64
start64:
        lidtq idt_pointer
        movw $0x10, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        # TR keeps what the loader left, base 0, so the TSS starts at linear address 0. Software-virtualised KVM
        # forgets the I/O privilege level in ring 3 and asks the TSS's I/O bitmap instead: it must be there and
        # be zero for the ports used, or OUT faults. Firmware leaves its vectors in this place.
        xorl %edi, %edi
        xorl %eax, %eax
        movl $(0x400 / 4), %ecx         # the TSS and its bitmap for ports below 0x1cc0
        rep stosl
        movq $ring0_stack_top, 4        # RSP0
        movw $0x68, 102                 # where the bitmap starts

        # What only ring 0 may ask: the hypervisor's CPUID leaves and the paravirtual clock.
        movl $0x40000000, %eax
        cpuid
        cmpl $0x4b4d564b, %ebx          # "KVMK"
        jne enter_ring3
        movl $0x40000001, %eax
        cpuid
        movl %eax, boot_kvm_features
        testl $8, %eax                  # KVM_FEATURE_CLOCKSOURCE2
        jz enter_ring3
        xorl %edx, %edx
        movl $0x4b564d00, %ecx          # wall clock at boot
        movl $pvclock_wall, %eax
        wrmsr
        movl $0x4b564d01, %ecx          # system time, enabled by bit 0
        movl $(pvclock_page + 1), %eax
        wrmsr

enter_ring3:
        movl $boot_stack_top, %eax
        pushq $0x1b
        pushq %rax
        pushq $0x3002                   # IOPL 3, interrupts off: they are taken only while idle
        pushq $0x23
        pushq $ring3_start
        iretq

ring3_start:
        xorl %ebp, %ebp
        call guest_main
        ud2

# fn idle_once(): sleeps until an interrupt arrives. The interrupt may already be pending: `sti` holds it back
# until `hlt` has begun, and irq_entry does not return to the `hlt` in any case, so no wake-up can be lost.
        .globl idle_once
idle_once:
idle_ud2:
        ud2
        ret

        .balign 16
        .globl ud_entry
ud_entry:
        cmpq $idle_ud2, (%rsp)
        jne ud_fault
        sti
        hlt
        cli
        addq $2, (%rsp)
        iretq
ud_fault:
        pushq $0
        pushq $6
        jmp trap_common

# Interrupts are enabled only between `sti` and `hlt` above, so the interrupted frame is of no use: drop it and
# return to ring 3 through the frame of the ud2, whose caller-saved registers are free to be clobbered.
        .balign 16
        .globl irq_entry
irq_entry:
        movl $0xfee000b0, %eax          # EOI
        movl $0, (%rax)
        movl $(ring0_stack_top - 40), %esp
        addq $2, (%rsp)
        iretq

# One stub per exception, 16 bytes apart: vector and error code go on the stack.
        .balign 16
        .globl trap_stubs
trap_stubs:
        .set vector, 0
        .rept 32
        .balign 16
        .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
        pushq $0
        .endif
        pushq $vector
        jmp trap_common
        .set vector, vector + 1
        .endr

# Nothing is decided here: fn trap_report(vector, error, rip, cr2, rsp) gets the facts in ring 3.
        .balign 16
trap_common:
        popq %rdi
        popq %rsi
        movq (%rsp), %rdx
        movq %cr2, %rcx
        movq 24(%rsp), %r8
        movq $trap_report, (%rsp)
        movq $0x23, 8(%rsp)
        movq $0x3002, 16(%rsp)
        movq $(trap_stack_top - 8), 24(%rsp)
        movq $0x1b, 32(%rsp)
        iretq

# Loads an IDT in which nothing can be delivered, then faults. fn triple_fault makes #UD lead here.
        .balign 16
        .globl lidt_zero
lidt_zero:
        lidtq zero_pointer
        ud2

        .section .data
        .balign 16
gdt:    .quad 0
        .quad 0x00af9b000000ffff        # 0x08 ring-0 code, 64-bit
        .quad 0x00cf93000000ffff        # 0x10 ring-0 data
        .quad 0x00cff3000000ffff        # 0x1b ring-3 data
        .quad 0x00affb000000ffff        # 0x23 ring-3 code, 64-bit
        .quad 0
        .quad 0x00cf9b000000ffff        # 0x30 ring-0 code, 32-bit
gdt_pointer:
        .word gdt_pointer - gdt - 1
        .quad gdt
idt_pointer:
        .word 4095
        .quad idt
zero_pointer:
        .word 0
        .quad 0
# Identity map, user-accessible: 4 KiB pages for the first 2 MiB, 2 MiB pages up to 4 GiB. Memory above that is
# added by ring 3. The kernel is alone on this machine, so the map protects nothing but page 0 and the stack.
        .balign 4096
        .globl pml4
pml4:   .quad pdpt + 7
        .fill 511, 8, 0
        .globl pdpt
pdpt:   .quad pd0 + 7, pd0 + 0x1007, pd0 + 0x2007, pd0 + 0x3007
        .fill 508, 8, 0
pd0:    .quad first_2m + 7
        .set page, 1
        .rept 2047
        .quad page * 0x200000 + 0xe7    # present, writable, user, accessed, dirty, large
        .set page, page + 1
        .endr
        .globl first_2m
first_2m:
        .quad 0x63                      # page 0 is ring 0's: it holds RSP0, and a null pointer traps
        .set page, 1
        .rept 511
        .quad page * 0x1000 + 0x67
        .set page, page + 1
        .endr

        .balign 8
        .globl boot_start_info, boot_kvm_features
boot_start_info:
        .quad 0
boot_kvm_features:
        .quad 0

        .section .bss.stack, "aw", @nobits
        .balign 4096
        .globl boot_stack_guard
boot_stack_guard:
        .skip 4096
        .skip 0x40000
boot_stack_top:
        .skip 8192
trap_stack_top:
        .skip 1024
        .balign 16
ring0_stack_top:
        .balign 4096
        .globl idt
idt:    .skip 4096
        .balign 64
        .globl pvclock_page, pvclock_wall
pvclock_page:
        .skip 64
pvclock_wall:
        .skip 64
