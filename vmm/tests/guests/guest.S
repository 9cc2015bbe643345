/* Test guests, one per MODE, all from one PVH entry.

   COUNT is the one that runs long: it leaves ring 0 at once (software-virtualised KVM interprets ring 0), writes
   "count\n" to COM1, then adds one to the first word of each page of [FIRST, FIRST + PAGES * 4096) in turn, for
   ever, and writes '.' after each round. So at any instant the words hold n + 1 up to some page and n after it:
   a guest that was copied wrongly, or that repeated or lost work, shows.

   The other modes end or misbehave in one instruction of ring 0. */

#define COUNT 0
#define TRIPLE_FAULT 1
#define PANIC 2
#define WATCHDOG 3
#define POWER_OFF 4
#define RESET 5

#define FIRST 0x800000
#ifndef PAGES
#define PAGES 512
#endif

        .section .note.pvh, "a", @note
        .long 4, 4, 18
        .asciz "Xen"
        .long start

        .section .text, "ax"
        .code32
        .globl start
start:  lgdtl   gdt_pointer
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $stack, %esp
#if MODE == TRIPLE_FAULT
        lidtl   no_idt
        ud2
#elif MODE == PANIC
        movw    $0x505, %dx
        movb    $1, %al
        outb    %al, %dx
        jmp     .
#elif MODE == WATCHDOG
        movw    $0x510, %dx
        movw    $1, %ax                 /* 100 ms */
        outw    %ax, %dx
        jmp     .
#elif MODE == POWER_OFF
        movw    $0x604, %dx
        movw    $(1 << 13 | 5 << 10), %ax
        outw    %ax, %dx
        jmp     .
#elif MODE == RESET
        movw    $0xcf9, %dx
        movb    $6, %al
        outb    %al, %dx
        jmp     .
#else
        ljmpl   $0x18, $1f
1:      movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0x620, %eax            /* PAE, SSE */
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx
        movl    $0x100, %eax            /* long mode */
        xorl    %edx, %edx
        wrmsr
        movl    $0x80000033, %eax       /* paging, protection */
        movl    %eax, %cr0
        ljmpl   $0x08, $long_mode

        .code64
long_mode:
        movw    $0x10, %ax
        movw    %ax, %ss
        movl    $stack, %esp
        pushq   $0x2b                   /* ring 3 data */
        pushq   $stack
        pushq   $0x3002                 /* may use ports */
        pushq   $0x33                   /* ring 3 code */
        pushq   $ring3
        iretq

ring3:  movl    $banner, %esi
        movw    $0x3f8, %dx
2:      lodsb
        testb   %al, %al
        jz      round
        outb    %al, %dx
        jmp     2b
round:  movl    $FIRST, %edi
        movl    $PAGES, %ecx
3:      incq    (%rdi)
        addq    $4096, %rdi
        decl    %ecx
        jnz     3b
        movb    $'.', %al
        outb    %al, %dx
        jmp     round
#endif

        .section .data, "aw"
        .balign 8
gdt:    .quad   0
        .quad   0x00af9b000000ffff      /* 0x08 code, 64-bit */
        .quad   0x00cf93000000ffff      /* 0x10 data */
        .quad   0x00cf9b000000ffff      /* 0x18 code, 32-bit */
        .quad   0
        .quad   0x00cff3000000ffff      /* 0x28 data, ring 3 */
        .quad   0x00affb000000ffff      /* 0x30 code, ring 3 */
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
no_idt: .word   0
        .long   0
banner: .asciz  "count\n"

        /* Identity map of 1 GiB in 2 MiB pages, for ring 3, accessed and dirty already. */
        .balign 4096
pml4:   .quad   pdpt + 7
        .balign 4096
pdpt:   .quad   directory + 7
        .balign 4096
directory:
        .set    page, 0
        .rept   512
        .quad   page + 0xe7
        .set    page, page + 0x200000
        .endr
        .balign 4096
        .skip   4096
stack:
