import { EAX, elf, label, le, type Part, SYSCALL, text } from "./machineCode.ts"
import * as Shutdown from "./shutdownProgram.ts"

const roomBytes = 4096

/** Reads on at r13, up to `roomBytes` in all; ebx is how much has come. Nothing more is told by eax. */
const readOn: ReadonlyArray<Part> = [
  [0x31, 0xc0], //                         xor  eax, eax         read
  [0x31, 0xff], //                         xor  edi, edi         stdin
  [0x49, 0x8d, 0x74, 0x1d, 0x00], //       lea  rsi, [r13+rbx]
  [0xba, ...le(roomBytes, 4)], //          mov  edx, 4096
  [0x29, 0xda], //                         sub  edx, ebx
  SYSCALL,
  [0x85, 0xc0] //                          test eax, eax
]

/** Makes the calls of the input at r13, one after the other, whatever their results are. There is one at least. */
const calls = (special: ReadonlyArray<Part>): ReadonlyArray<Part> => [
  [0x41, 0x0f, 0xb7, 0x6d, 0x04], //          movzx ebp, word [r13+4]      the calls that are left
  [0x45, 0x0f, 0xb7, 0x65, 0x06], //          movzx r12d, word [r13+6]
  [0x4d, 0x01, 0xec], //                      add  r12, r13                where the next result is kept
  [0x49, 0x8d, 0x5d, 0x08], //                lea  rbx, [r13+8]            the next call
  label("call"),
  [0x8b, 0x7b, 0x04], //                      mov  edi, [rbx+4]
  [0x49, 0x8d, 0x44, 0x3d, 0x00], //          lea  rax, [r13+rdi]
  [0xf6, 0x43, 0x02, 0x01], //                test byte [rbx+2], 1
  [0x48, 0x0f, 0x45, 0xf8], //                cmovnz rdi, rax
  [0x8b, 0x73, 0x08], //                      mov  esi, [rbx+8]
  [0x49, 0x8d, 0x44, 0x35, 0x00], //          lea  rax, [r13+rsi]
  [0xf6, 0x43, 0x02, 0x02], //                test byte [rbx+2], 2
  [0x48, 0x0f, 0x45, 0xf0], //                cmovnz rsi, rax
  [0x8b, 0x53, 0x0c], //                      mov  edx, [rbx+12]
  [0x49, 0x8d, 0x44, 0x15, 0x00], //          lea  rax, [r13+rdx]
  [0xf6, 0x43, 0x02, 0x04], //                test byte [rbx+2], 4
  [0x48, 0x0f, 0x45, 0xd0], //                cmovnz rdx, rax
  [0x0f, 0xb7, 0x03], //                      movzx eax, word [rbx]
  ...special,
  SYSCALL,
  label("made"),
  [0x41, 0x89, 0x04, 0x24], //                mov  [r12], eax
  [0x49, 0x83, 0xc4, 0x04], //                add  r12, 4
  [0x48, 0x83, 0xc3, 0x10], //                add  rbx, 16
  [0xff, 0xcd], //                            dec  ebp
  { lea: [0x0f, 0x85], of: "call" } //        jnz
]

/** `microvm-syscalls`, as `GuestPrograms.syscalls` says. */
export const syscalls: Uint8Array = elf([
  [0x48, 0x81, 0xec, ...le(roomBytes, 4)], // sub  rsp, 4096        the input lies on the stack, which is zero below
  [0x49, 0x89, 0xe5], //                      mov  r13, rsp
  [0x31, 0xdb], //                            xor  ebx, ebx
  label("read"), //                           stdin may be a pipe and come in parts
  ...readOn,
  { jump: 0x7e, to: "whole" }, //             jle
  [0x01, 0xc3], //                            add  ebx, eax
  { jump: 0xeb, to: "read" }, //              jmp
  label("whole"),
  [0xbf, ...le(1, 4)], //                     mov  edi, 1
  [0x41, 0x3b, 0x5d, 0x00], //                cmp  ebx, [r13]
  { jump: 0x75, to: "exit" }, //              jne
  [0x66, 0x41, 0x83, 0x7d, 0x04, 0x00], //    cmp  word [r13+4], 0
  { jump: 0x74, to: "exit" }, //              je
  ...calls([]),
  [0x31, 0xff], //                            xor  edi, edi
  label("exit"),
  EAX(60), //                                 exit
  SYSCALL
])

/** `microvm-resident`, as `GuestPrograms.resident` says. The stack stays as it was at the start, for the shutdown. */
export const resident: Uint8Array = elf([
  EAX(1), //                                  write
  [0xbf, ...le(1, 4)], //                     mov  edi, 1
  { lea: [0x48, 0x8d, 0x35], of: "waits" }, // lea rsi, [rip+waits]
  [0xba, ...le(6, 4)], //                     mov  edx, 6
  SYSCALL,
  [0x41, 0xbd, ...le(0x10000000, 4)], //      mov  r13d, 0x10000000

  label("serve"), //                          the input lies where all is zero, each time anew
  EAX(9), //                                  mmap
  [0x44, 0x89, 0xef], //                      mov  edi, r13d
  [0xbe, ...le(roomBytes, 4)], //             mov  esi, 4096
  [0xba, ...le(3, 4)], //                     mov  edx, PROT_READ | PROT_WRITE
  [0x41, 0xba, ...le(0x32, 4)], //            mov  r10d, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
  [0x49, 0x83, 0xc8, 0xff], //                or   r8, -1
  [0x45, 0x31, 0xc9], //                      xor  r9d, r9d
  SYSCALL,
  [0x45, 0x31, 0xd2], //                      xor  r10d, r10d       the fourth argument of a call
  [0x31, 0xdb], //                            xor  ebx, ebx
  label("read"),
  ...readOn,
  { lea: [0x0f, 0x8e], of: "exit" }, //       jle
  [0x01, 0xc3], //                            add  ebx, eax
  [0x83, 0xfb, 0x08], //                      cmp  ebx, 8
  { jump: 0x72, to: "read" }, //              jb
  [0x41, 0x3b, 0x5d, 0x00], //                cmp  ebx, [r13]
  { jump: 0x72, to: "read" }, //              jb
  { lea: [0x0f, 0x85], of: "exit" }, //       jne                   more than there is to be
  [0x66, 0x41, 0x83, 0x7d, 0x04, 0x00], //    cmp  word [r13+4], 0
  { lea: [0x0f, 0x84], of: "exit" }, //       je
  ...calls([
    [0x3d, ...le(0xffff, 4)], //              cmp  eax, 0xffff
    { lea: [0x0f, 0x84], of: "shutdown" }, // je
    [0x3d, ...le(0xfffe, 4)], //              cmp  eax, 0xfffe
    { jump: 0x75, to: "kernel" }, //          jne
    [0x49, 0x89, 0xfe], //                    mov  r14, rdi           the child has our memory, and we wait until it has its own
    [0x49, 0x89, 0xf7], //                    mov  r15, rsi
    EAX(56), //                               clone
    [0xbf, ...le(0x4111, 4)], //              mov  edi, CLONE_VM | CLONE_VFORK | SIGCHLD
    [0x31, 0xf6], //                          xor  esi, esi
    SYSCALL,
    [0x85, 0xc0], //                          test eax, eax
    { jump: 0x75, to: "made" }, //            jnz
    EAX(59), //                               execve
    [0x4c, 0x89, 0xf7], //                    mov  rdi, r14
    [0x4c, 0x89, 0xfe], //                    mov  rsi, r15
    SYSCALL,
    EAX(60), //                               exit
    [0xbf, ...le(127, 4)], //                 mov  edi, 127
    SYSCALL,
    label("kernel")
  ]),
  { lea: [0xe9], of: "serve" }, //            jmp
  label("exit"),
  EAX(60), //                                 exit
  [0xbf, ...le(1, 4)], //                     mov  edi, 1
  SYSCALL,
  label("waits"),
  text("waits\n"),

  label("shutdown"),
  ...Shutdown.parts({ forks: false })
])
