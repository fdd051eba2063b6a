//! What runs on the processor: it takes commands from the serial line, a byte and two numbers of 32 bits each, and acknowledges each
//! when it is done. Interrupts are on, and are counted by vector.

#![expect(unsafe_code, reason = "assembly, and its bytes")]

use std::arch::global_asm;

/// Where interrupts are counted, 32 bits a vector.
pub(crate) const COUNTERS: u64 = 0x2000;
/// Where the other processors begin. It must be a page below 1 MiB: the start-up message has room for no more.
pub(crate) const WAKE_PAGE: u64 = 0x3000;
/// Where they count themselves, 16 bits.
pub(crate) const AWAKE: u64 = 0x2800;
/// Where they write a byte of their number, at this number.
pub(crate) const AWAKE_IDS: u64 = 0x2810;
/// The first vector that is counted; those below are exceptions.
pub(crate) const FIRST_VECTOR: u32 = 0x40;
/// The acknowledgement.
pub(crate) const DONE: u8 = 0xa5;
/// What is said before an exception's vector.
const UNEXPECTED: u8 = 0xee;

const DESCRIPTORS: u64 = 0x1000;
const CODE_SELECTOR: u16 = 0x10;
const END_OF_INTERRUPT: u64 = 0xfee0_00b0;

/// Commands. What the two numbers are is said at each.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Command {
    /// Address, length: writes the bytes that follow into memory.
    Put = 1,
    /// Address, length: says what is in memory.
    Get = 2,
    /// Address, value: one access of 32 bits.
    Store = 3,
    /// Address: one access of 32 bits, which it says.
    Load = 4,
    /// Port, value: one byte.
    Out = 5,
    /// Address, value: halts until the 32 bits there are others.
    Halt = 6,
    /// Says 0, 1, 2 and so on, until it is told one more byte.
    Count = 7,
    /// Leaves the processor no handler, and takes a breakpoint.
    Fault = 8,
    /// Turns off interrupts, and halts for ever.
    Stop = 9,
    /// Leaf, sub-leaf: says EAX, EBX, ECX and EDX of CPUID, 64 bits each.
    Identify = 10,
}

global_asm!(
    r#"
    .pushsection .rodata.payload, "a", @progbits
    .balign 16
satchel_payload_begin:
    .code64
    mov edi, {descriptors}
    lea rax, [rip + stubs]
    mov ecx, 256
2:  mov word ptr [rdi], ax
    mov word ptr [rdi + 2], {code_selector}
    mov word ptr [rdi + 4], 0x8e00
    mov edx, eax
    shr edx, 16
    mov word ptr [rdi + 6], dx
    mov dword ptr [rdi + 8], 0
    mov dword ptr [rdi + 12], 0
    add rdi, 16
    add rax, 16
    dec ecx
    jnz 2b
    lidt [rip + descriptor_register]
    // The old interrupt controller is connected to the same lines.
    mov al, 0xff
    out 0x21, al
    out 0xa1, al
    sti

command:
    call receive
    movzx ebx, al
    call receive_number
    mov rdi, r8
    call receive_number
    mov rsi, r8
    cmp ebx, 1
    je put
    cmp ebx, 2
    je get
    cmp ebx, 3
    je store
    cmp ebx, 4
    je load
    cmp ebx, 5
    je out_byte
    cmp ebx, 6
    je halt
    cmp ebx, 7
    je count
    cmp ebx, 8
    je fault
    cmp ebx, 9
    je stop
    cmp ebx, 10
    je identify
done:
    mov al, {done}
    call send
    jmp command

put:
    test rsi, rsi
    jz done
    call receive
    mov byte ptr [rdi], al
    inc rdi
    dec rsi
    jmp put

get:
    test rsi, rsi
    jz done
    mov al, byte ptr [rdi]
    call send
    inc rdi
    dec rsi
    jmp get

store:
    mov dword ptr [rdi], esi
    jmp done

load:
    mov ebx, dword ptr [rdi]
    mov ecx, 4
2:  mov al, bl
    call send
    shr ebx, 8
    dec ecx
    jnz 2b
    jmp done

out_byte:
    mov edx, edi
    mov eax, esi
    out dx, al
    jmp done

    // Nothing comes between the comparison and the halt: interrupts are on from behind the instruction that follows sti.
halt:
    cli
    cmp dword ptr [rdi], esi
    jne 2f
    sti
    hlt
    jmp halt
2:  sti
    jmp done

count:
    xor ebx, ebx
2:  mov al, bl
    call send
    inc ebx
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz 2b
    call receive
    jmp done

fault:
    lidt [rip + no_descriptors]
    int3

stop:
    cli
    hlt
    jmp stop

identify:
    mov eax, edi
    mov ecx, esi
    cpuid
    push rdx
    push rcx
    push rbx
    push rax
    mov rdi, rsp
    mov esi, 4 * 8
2:  mov al, byte ptr [rdi]
    call send
    inc rdi
    dec esi
    jnz 2b
    add rsp, 4 * 8
    jmp done

    // A byte of the serial line into AL. Clobbers DX.
receive:
    mov dx, 0x3fd
2:  pause
    in al, dx
    test al, 1
    jz 2b
    mov dx, 0x3f8
    in al, dx
    ret

    // Four bytes of the serial line, the lowest first, into R8. Clobbers RAX, RCX and DX.
receive_number:
    xor r8d, r8d
    mov ecx, 4
2:  call receive
    movzx eax, al
    or r8d, eax
    ror r8d, 8
    dec ecx
    jnz 2b
    ret

    // A byte to the serial line. Clobbers DX.
send:
    mov dx, 0x3f8
    out dx, al
    ret

    .balign 16
stubs:
    .set satchel_payload_vector, 0
    .rept 256
    .balign 16
    push rax
    mov eax, satchel_payload_vector
    jmp interrupted
    .set satchel_payload_vector, satchel_payload_vector + 1
    .endr

interrupted:
    cmp eax, {first_vector}
    jb unexpected
    inc dword ptr [rax * 4 + {counters}]
    mov eax, {end_of_interrupt}
    mov dword ptr [rax], 0
    pop rax
    iretq

    // An exception: its mark, its vector, CR2, and what is on the stack from RAX on.
unexpected:
    mov ebx, eax
    mov rax, cr2
    push rax
    mov al, {unexpected}
    call send
    mov al, bl
    call send
    mov rdi, rsp
    mov esi, 7 * 8
2:  mov al, byte ptr [rdi]
    call send
    inc rdi
    dec esi
    jnz 2b
    jmp stop

descriptor_register:
    .word 0xfff
    .quad {descriptors}
no_descriptors:
    .word 0
    .quad 0
satchel_payload_end:

    // Another processor, in real mode, at the beginning of its page.
satchel_wake_begin:
    .code16
    cli
    xor ax, ax
    mov ds, ax
    mov eax, 1
    cpuid
    shr ebx, 24
    mov byte ptr [bx + {awake_ids}], bl
    lock inc word ptr [{awake}]
2:  hlt
    jmp 2b
satchel_wake_end:
    .code64
    .popsection
    "#,
    descriptors = const DESCRIPTORS,
    first_vector = const FIRST_VECTOR,
    code_selector = const CODE_SELECTOR,
    done = const DONE,
    unexpected = const UNEXPECTED,
    counters = const COUNTERS,
    end_of_interrupt = const END_OF_INTERRUPT,
    awake = const AWAKE,
    awake_ids = const AWAKE_IDS,
);

mod labels {
    // SAFETY: each is a label of the assembly above, in read-only memory of this program.
    unsafe extern "C" {
        pub(super) safe static satchel_payload_begin: u8;
        pub(super) safe static satchel_payload_end: u8;
        pub(super) safe static satchel_wake_begin: u8;
        pub(super) safe static satchel_wake_end: u8;
    }
}

fn between(begin: *const u8, end: *const u8) -> &'static [u8] {
    let length = end.addr() - begin.addr();
    // SAFETY: both are labels of one section, which nobody writes, and the second stands behind the first.
    unsafe { std::slice::from_raw_parts(begin, length) }
}

/// The first processor's code. It may lie anywhere.
pub(crate) fn payload() -> &'static [u8] {
    between(&raw const labels::satchel_payload_begin, &raw const labels::satchel_payload_end)
}

/// The code of the others.
pub(crate) fn wake_page() -> &'static [u8] {
    between(&raw const labels::satchel_wake_begin, &raw const labels::satchel_wake_end)
}
