import { ascii, EAX, elf, label, le, type Part, SYSCALL, text } from "./machineCode.ts"

/** The agent waits for this program before it looks at its own SIGTERM, so the work is a child's. */
const fork: ReadonlyArray<Part> = [
  EAX(56), //                                 clone
  [0xbf, ...le(0x111, 4)], //                 mov edi, 0x111
  [0x31, 0xf6], //                            xor esi, esi
  [0x31, 0xd2], //                            xor edx, edx
  [0x45, 0x31, 0xd2], //                      xor r10d, r10d
  [0x45, 0x31, 0xc0], //                      xor r8d, r8d
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x74, to: "child" } //              jz
]

/**
 * Presses the button's other side: QEMU's boards with ACPI end when this is written to PM1a_CNT, without a kernel that first
 * puts away each of its devices. Where it is in vain, reboot(2) comes after it.
 */
const outright: ReadonlyArray<Part> = [
  EAX(172), //                                iopl
  [0xbf, ...le(3, 4)], //                     mov edi, 3
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x75, to: "reboot" }, //            jnz
  [0xba, ...le(0x604, 4)], //                 mov edx, 0x604
  [0xb8, ...le(0x2000, 4)], //                mov eax, SLP_EN
  [0x66, 0xef], //                            out dx, ax
  label("reboot")
]

/**
 * The kernel has it on the console when the write is done; on a terminal it could still wait when the machine ends. The newline in
 * front ends what somebody may have left there unfinished.
 */
const said = (how: string): string => `<0>\nmicrovm-shutdown: all is written, ${how}\n`

const tell: ReadonlyArray<Part> = [
  EAX(2), //                                  open
  { lea: [0x48, 0x8d, 0x3d], of: "kmsg" }, // lea rdi, [rip+kmsg]
  [0xbe, ...le(1, 4)], //                     mov esi, O_WRONLY
  SYSCALL,
  [0x89, 0xc7], //                            mov edi, eax
  { lea: [0x48, 0x8d, 0x35], of: "poweroff" }, // lea rsi, [rip+poweroff]
  [0xba, ...le(said("poweroff").length, 4)], // mov edx
  [0x41, 0x81, 0xfd, ...le(0x4321fedc, 4)], // cmp r13d, 0x4321fedc
  { jump: 0x74, to: "tell" }, //              je
  { lea: [0x48, 0x8d, 0x35], of: "halt" }, // lea rsi, [rip+halt]
  [0xba, ...le(said("halt").length, 4)], //   mov edx
  [0x41, 0x81, 0xfd, ...le(0xcdef0123, 4)], // cmp r13d, 0xcdef0123
  { jump: 0x74, to: "tell" }, //              je
  { lea: [0x48, 0x8d, 0x35], of: "restart" }, // lea rsi, [rip+restart]
  [0xba, ...le(said("reboot").length, 4)], // mov edx
  label("tell"),
  EAX(1), //                                  write
  SYSCALL
]

/** `shutdown` without its head. It begins with a stack as that of a program that starts, and edi is the first pid of the processes that have last words. */
export const parts = ({ forks }: { readonly forks: boolean }): ReadonlyArray<Part> => [
  // r12: our words, r15: the environment; room for 64 KiB
  [0x48, 0x8b, 0x1c, 0x24], //                mov rbx, [rsp]
  [0x4c, 0x8d, 0x7c, 0xdc, 0x10], //          lea r15, [rsp+8*rbx+16]
  [0x4c, 0x8d, 0x64, 0x24, 0x08], //          lea r12, [rsp+8]
  [0x57], //                                  push rdi                          kept at rsp+65536
  [0x48, 0x81, 0xec, ...le(65536, 4)], //     sub rsp, 65536

  // what has to be unmounted, or be told, is the business of the script
  { lea: [0x48, 0x8d, 0x3d], of: "cmdline" }, // lea rdi, [rip+cmdline]
  { lea: [0x48, 0x8d, 0x2d], of: "off" }, //  lea rbp, [rip+off]
  [0x41, 0xbe, ...le(12, 4)], //              mov r14d, 12
  { lea: [0xe8], of: "search" }, //           call
  { lea: [0x48, 0x8d, 0x3d], of: "mounts" }, // lea rdi, [rip+mounts]
  { lea: [0x48, 0x8d, 0x2d], of: "device" }, // lea rbp, [rip+device]
  [0x41, 0xbe, ...le(6, 4)], //               mov r14d, 6
  { lea: [0xe8], of: "search" }, //           call

  // how, by the last of -P, -H and -r
  [0x41, 0xbd, ...le(0x4321fedc, 4)], //      mov r13d, 0x4321fedc
  label("words"),
  [0x49, 0x83, 0xc4, 0x08], //                add r12, 8
  [0x49, 0x8b, 0x34, 0x24], //                mov rsi, [r12]
  [0x48, 0x85, 0xf6], //                      test rsi, rsi
  { jump: 0x74, to: "begin" }, //             jz
  [0x80, 0x3e, 0x2d], //                      cmp byte ptr [rsi], 45
  { jump: 0x75, to: "words" }, //             jne
  [0x8b, 0x46, 0x01], //                      mov eax, [rsi+1]
  [0x25, ...le(0xffff, 4)], //                and eax, 0xffff
  [0x83, 0xf8, 0x50], //                      cmp eax, 0x50
  [0xb9, ...le(0x4321fedc, 4)], //            mov ecx, 0x4321fedc
  [0x44, 0x0f, 0x44, 0xe9], //                cmove r13d, ecx
  [0x83, 0xf8, 0x48], //                      cmp eax, 0x48
  [0xb9, ...le(0xcdef0123, 4)], //            mov ecx, 0xcdef0123
  [0x44, 0x0f, 0x44, 0xe9], //                cmove r13d, ecx
  [0x83, 0xf8, 0x72], //                      cmp eax, 0x72
  [0xb9, ...le(0x01234567, 4)], //            mov ecx, 0x01234567
  [0x44, 0x0f, 0x44, 0xe9], //                cmove r13d, ecx
  { jump: 0xeb, to: "words" }, //             jmp

  // one shutdown at a time; this also keeps the agent from being started again
  label("begin"),
  EAX(83), //                                 mkdir
  { lea: [0x48, 0x8d, 0x3d], of: "mark" }, // lea rdi, [rip+mark]
  [0xbe, ...le(0o755, 4)], //                 mov esi, 0755
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x75, to: "done" }, //              jnz

  ...(forks ? fork : [{ jump: 0xeb, to: "child" }]),
  label("done"),
  EAX(60), //                                 exit
  [0x31, 0xff], //                            xor edi, edi
  SYSCALL,
  label("child"),

  EAX(39), //                                 getpid
  SYSCALL,
  [0x41, 0x89, 0xc4], //                      mov r12d, eax
  [0xbb, ...le(251, 4)], //                   mov ebx, 251
  { lea: [0xe9], of: "wait" }, //             jmp

  // somebody lives
  label("first"),
  // SIGHUP, SIGINT, SIGTERM
  [0xbb, ...le(1, 4)], //                     mov ebx, 1
  { lea: [0xe8], of: "deaf" }, //             call
  [0xbb, ...le(2, 4)], //                     mov ebx, 2
  { lea: [0xe8], of: "deaf" }, //             call
  [0xbb, ...le(15, 4)], //                    mov ebx, 15
  { lea: [0xe8], of: "deaf" }, //             call

  // a stopped process can act on SIGTERM only once it goes on
  [0xbe, ...le(15, 4)], //                    mov esi, 15
  { lea: [0xe8], of: "kill" }, //             call
  [0xbe, ...le(18, 4)], //                    mov esi, 18
  { lea: [0xe8], of: "kill" }, //             call
  [0xbb, ...le(250, 4)], //                   mov ebx, 250

  // until nobody lives who began at the first of ours or later, at most 250 times 4 ms
  label("wait"),
  EAX(2), //                                  open
  { lea: [0x48, 0x8d, 0x3d], of: "proc" }, // lea rdi, [rip+proc]
  [0xbe, ...le(0x90000, 4)], //               mov esi, 0x90000
  [0x31, 0xd2], //                            xor edx, edx
  SYSCALL,
  [0x41, 0x89, 0xc6], //                      mov r14d, eax
  label("list"),
  EAX(217), //                                getdents64
  [0x44, 0x89, 0xf7], //                      mov edi, r14d
  [0x48, 0x89, 0xe6], //                      mov rsi, rsp
  [0xba, ...le(32768, 4)], //                 mov edx, 32768
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { lea: [0x0f, 0x8e], of: "nobody" }, //     jle
  [0x48, 0x89, 0xe5], //                      mov rbp, rsp
  [0x4c, 0x8d, 0x3c, 0x04], //                lea r15, [rsp+rax]
  label("entry"),
  [0x4c, 0x39, 0xfd], //                      cmp rbp, r15
  { jump: 0x73, to: "list" }, //              jae
  [0x4c, 0x8d, 0x45, 0x13], //                lea r8, [rbp+19]
  [0x0f, 0xb7, 0x45, 0x10], //                movzx eax, word ptr [rbp+16]
  [0x48, 0x01, 0xc5], //                      add rbp, rax

  // its number, and its path
  [0x45, 0x31, 0xc9], //                      xor r9d, r9d
  [0x48, 0x8d, 0xbc, 0x24, 0x00, 0x80, 0x00, 0x00], // lea rdi, [rsp+32768]
  { lea: [0x48, 0x8d, 0x35], of: "proc" }, // lea rsi, [rip+proc]
  [0xb9, ...le(6, 4)], //                     mov ecx, 6
  [0xf3, 0xa4], //                            rep movsb
  label("digit"),
  [0x41, 0x0f, 0xb6, 0x00], //                movzx eax, byte ptr [r8]
  [0x49, 0xff, 0xc0], //                      inc r8
  [0x84, 0xc0], //                            test al, al
  { jump: 0x74, to: "number" }, //            jz
  [0xaa], //                                  stosb
  [0x83, 0xe8, 0x30], //                      sub eax, 48
  [0x83, 0xf8, 0x09], //                      cmp eax, 9
  { jump: 0x77, to: "entry" }, //             ja
  [0x45, 0x6b, 0xc9, 0x0a], //                imul r9d, r9d, 10
  [0x41, 0x01, 0xc1], //                      add r9d, eax
  { jump: 0xeb, to: "digit" }, //             jmp
  label("number"),
  [0x41, 0x83, 0xf9, 0x01], //                cmp r9d, 1
  { jump: 0x76, to: "entry" }, //             jbe
  [0x44, 0x3b, 0x8c, 0x24, ...le(65536, 4)], // cmp r9d, [rsp+65536]
  { lea: [0x0f, 0x82], of: "entry" }, //      jb
  [0x45, 0x39, 0xe1], //                      cmp r9d, r12d
  { lea: [0x0f, 0x84], of: "entry" }, //      je
  [0x48, 0xb8, 0x2f, 0x63, 0x6d, 0x64, 0x6c, 0x69, 0x6e, 0x65], // mov rax, 0x656e696c646d632f
  [0x48, 0xab], //                            stosq
  [0xc6, 0x07, 0x00], //                      mov byte ptr [rdi], 0
  EAX(2), //                                  open
  [0x48, 0x8d, 0xbc, 0x24, 0x00, 0x80, 0x00, 0x00], // lea rdi, [rsp+32768]
  [0xbe, ...le(0x80000, 4)], //               mov esi, 0x80000
  [0x31, 0xd2], //                            xor edx, edx
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { lea: [0x0f, 0x88], of: "entry" }, //      js
  [0x41, 0x89, 0xc2], //                      mov r10d, eax
  [0x89, 0xc7], //                            mov edi, eax
  [0x31, 0xc0], //                            xor eax, eax
  [0x48, 0x8d, 0xb4, 0x24, 0x00, 0x80, 0x00, 0x00], // lea rsi, [rsp+32768]
  [0xba, ...le(64, 4)], //                    mov edx, 64
  SYSCALL,
  [0x41, 0x89, 0xc0], //                      mov r8d, eax
  EAX(3), //                                  close
  [0x44, 0x89, 0xd7], //                      mov edi, r10d
  SYSCALL,

  // kernel threads and zombies have no command line
  [0x45, 0x85, 0xc0], //                      test r8d, r8d
  { lea: [0x0f, 0x8e], of: "entry" }, //      jle

  // what carries the last words of others goes with SIGKILL
  [0x48, 0x8d, 0xb4, 0x24, 0x00, 0x80, 0x00, 0x00], // lea rsi, [rsp+32768]
  { lea: [0x48, 0x8d, 0x3d], of: "vsock" }, // lea rdi, [rip+vsock]
  [0xb9, ...le(19, 4)], //                    mov ecx, 19
  [0xf3, 0xa6], //                            repe cmpsb
  { lea: [0x0f, 0x84], of: "entry" }, //      je
  EAX(3), //                                  close
  [0x44, 0x89, 0xf7], //                      mov edi, r14d
  SYSCALL,
  [0xff, 0xcb], //                            dec ebx
  { lea: [0x0f, 0x84], of: "down" }, //       jz
  [0x81, 0xfb, ...le(250, 4)], //             cmp ebx, 250
  { lea: [0x0f, 0x84], of: "first" }, //      je
  EAX(35), //                                 nanosleep
  { lea: [0x48, 0x8d, 0x3d], of: "pause" }, // lea rdi, [rip+pause]
  [0x31, 0xf6], //                            xor esi, esi
  SYSCALL,
  { lea: [0xe9], of: "wait" }, //             jmp
  label("nobody"),
  [0x81, 0xfb, ...le(251, 4)], //             cmp ebx, 251
  { jump: 0x74, to: "sync" }, //              je
  label("down"),
  [0xbe, ...le(9, 4)], //                     mov esi, 9
  { lea: [0xe8], of: "kill" }, //             call
  label("sync"),
  EAX(162), //                                sync
  SYSCALL,
  ...tell,
  ...(forks ? [] : outright),
  EAX(169), //                                reboot
  [0xbf, ...le(0xfee1dead, 4)], //            mov edi, 0xfee1dead
  [0xbe, ...le(672274793, 4)], //             mov esi, 672274793
  [0x44, 0x89, 0xea], //                      mov edx, r13d
  [0x45, 0x31, 0xd2], //                      xor r10d, r10d
  SYSCALL,
  { lea: [0xe9], of: "done" }, //             jmp
  label("kill"),
  EAX(62), //                                 kill
  [0x83, 0xcf, 0xff], //                      or edi, -1
  SYSCALL,
  [0xc3], //                                  ret
  label("deaf"),
  EAX(13), //                                 rt_sigaction
  [0x89, 0xdf], //                            mov edi, ebx
  { lea: [0x48, 0x8d, 0x35], of: "ignore" }, // lea rsi, [rip+ignore]
  [0x31, 0xd2], //                            xor edx, edx
  [0x41, 0xba, ...le(8, 4)], //               mov r10d, 8
  SYSCALL,
  [0xc3], //                                  ret

  // becomes the script when the file rdi has the r14d bytes at rbp
  label("search"),
  EAX(2), //                                  open
  [0x31, 0xf6], //                            xor esi, esi
  SYSCALL,
  [0x89, 0xc7], //                            mov edi, eax
  [0x31, 0xdb], //                            xor ebx, ebx
  [0x49, 0x89, 0xe5], //                      mov r13, rsp
  [0x49, 0x83, 0xc5, 0x08], //                add r13, 8
  label("more"),
  [0x31, 0xc0], //                            xor eax, eax
  [0x49, 0x8d, 0x74, 0x1d, 0x00], //          lea rsi, [r13+rbx]
  [0xba, ...le(65000, 4)], //                 mov edx, 65000
  [0x29, 0xda], //                            sub edx, ebx
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x7e, to: "whole" }, //             jle
  [0x01, 0xc3], //                            add ebx, eax
  { jump: 0xeb, to: "more" }, //              jmp
  label("whole"),
  EAX(3), //                                  close
  SYSCALL,
  [0x41, 0xb8, 0xff, 0xff, 0xff, 0xff], //    mov r8d, -1
  label("compare"),
  [0x41, 0xff, 0xc0], //                      inc r8d
  [0x43, 0x8d, 0x04, 0x30], //                lea eax, [r8+r14]
  [0x39, 0xd8], //                            cmp eax, ebx
  { jump: 0x77, to: "absent" }, //            ja
  [0x4b, 0x8d, 0x74, 0x05, 0x00], //          lea rsi, [r13+r8]
  [0x48, 0x89, 0xef], //                      mov rdi, rbp
  [0x44, 0x89, 0xf1], //                      mov ecx, r14d
  [0xf3, 0xa6], //                            repe cmpsb
  { jump: 0x75, to: "compare" }, //           jne
  [0x49, 0x8d, 0x74, 0x24, 0xf8], //          lea rsi, [r12-8]
  { lea: [0x48, 0x8d, 0x05], of: "sh" }, //   lea rax, [rip+sh]
  [0x48, 0x89, 0x06], //                      mov [rsi], rax
  { lea: [0x48, 0x8d, 0x05], of: "script" }, // lea rax, [rip+script]
  [0x48, 0x89, 0x46, 0x08], //                mov [rsi+8], rax
  EAX(59), //                                 execve
  { lea: [0x48, 0x8d, 0x3d], of: "busybox" }, // lea rdi, [rip+busybox]
  [0x4c, 0x89, 0xfa], //                      mov rdx, r15
  SYSCALL,
  { lea: [0xe9], of: "done" }, //             jmp
  label("absent"),
  [0xc3], //                                  ret
  label("cmdline"),
  text("/proc/cmdline"),
  label("off"),
  ascii("microvm.off="),
  label("mounts"),
  text("/proc/mounts"),
  label("device"),
  ascii("\n/dev/"),
  label("kmsg"),
  text("/dev/kmsg"),
  label("poweroff"),
  ascii(said("poweroff")),
  label("halt"),
  ascii(said("halt")),
  label("restart"),
  ascii(said("reboot")),
  label("mark"),
  text("/run/shutdown"),
  label("proc"),
  text("/proc/"),
  label("vsock"),
  ascii("/sbin/microvm-vsock"),
  label("pause"),
  [...le(0, 8), ...le(4000000, 8)],
  label("ignore"),
  [...le(1, 8), ...le(0, 8), ...le(0, 8), ...le(0, 8)],
  label("sh"),
  text("sh"),
  label("script"),
  text("/sbin/microvm-shutdown.sh"),
  label("busybox"),
  text("/bin/busybox")
]

/** `shutdown`, as `GuestPrograms.shutdown` says. */
export const shutdown: Uint8Array = elf(parts({ forks: true }))
