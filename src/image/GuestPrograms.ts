/**
 * The programs of the guest's user land that are ours and no scripts: one does what there is no command for, the others do
 * what would take a shell milliseconds in an emulated guest. They are kept as machine code for x86-64, as no compiler is
 * needed then to make an image, and have no more to them than system calls.
 *
 * Source: syscall(2), execve(2), and the System V ABI for what lies on the stack at the start.
 *
 * @since 0.1.0
 */
import * as Calls from "./internal/callPrograms.ts"
import * as Exec from "./internal/execProgram.ts"
import { EAX, elf, label, le, type Part, SYSCALL, text } from "./internal/machineCode.ts"
import * as Shutdown from "./internal/shutdownProgram.ts"

const RSP = (bytes: number): Part => [0x48, 0x81, 0xec, ...le(bytes, 4)]
const TEST_EAX: Part = [0x85, 0xc0]
const jump = { always: 0xeb, zero: 0x74, notZero: 0x75, notNegative: 0x79, notPositive: 0x7e } as const
const to = (when: keyof typeof jump, name: string): Part => ({ jump: jump[when], to: name })

/**
 * `microvm-syscalls`: makes the system calls that its input lists, one after the other, whatever their results are.
 *
 * The input, with numbers in little-endian order, has at most 4096 bytes:
 *
 * - How many bytes it has in all (4 bytes), how many calls (2), and where in it their results are kept (2).
 * - The calls, 16 bytes each: the number of the system call (2), which arguments are places (1, where bit n tells of
 *   argument n), 1 byte that is not used, and three arguments (4 each). A place is counted from the input's start, and the
 *   call gets its address.
 * - What the places are for. Behind the input, up to its 4096th byte, all is zero.
 *
 * A result is that of the kernel (4 bytes): negative errors are those of errno(3). Nothing is written unless the input
 * has a call for it, which sees the results of those before.
 *
 * Exit codes: 0 when all calls were made, 1 with none made when there is none or the input is not as long as it says. The
 * rest of its input it trusts.
 *
 * @category programs
 * @since 0.1.0
 */
export const syscalls: Uint8Array = Calls.syscalls

/**
 * `microvm-resident`: waits in a machine that others are restored from, and does there what is first done in each of them, where
 * every program that has to be started costs tens of milliseconds without acceleration. Its stdin and stdout are the port
 * `microvm.resident`. First it writes a line `waits`; then each input is one as `microvm-syscalls` takes it, and not before the
 * one before is done.
 *
 * Two calls are none of the kernel's. 65534 starts a program, with the arguments of execve(2), and gives its pid or an error; it is
 * a child of this process, whose stderr is that of this process, and ends with 127 when it cannot be executed. 65535 is what
 * `shutdown -P` does, in this very process, but what has a lower pid than its argument gets no time to act on SIGTERM, and where nothing
 * else lives, QEMU's board is turned off without the kernel's own way to it. The input lies at 0x10000000, for the addresses that are in it.
 *
 * Ends with 1 at the end of its input, and at an input without calls or with more than it says.
 *
 * @category programs
 * @since 0.1.0
 */
export const resident: Uint8Array = Calls.resident

/**
 * `microvm-exec [-C DIR] SLOT NONCE -- COMMAND [ARGUMENT…]`: becomes COMMAND, whose stdin, stdout and stderr travel over
 * the virtio ports `microvm.SLOT.stdin`, `.stdout` and `.stderr`, with flow control from end to end. NONCE is 32
 * lower-case hexadecimal digits, new for each run. The environment is the caller's. COMMAND is looked up in its PATH, or in the usual
 * places when there is none, and is in a session and a group of its own.
 *
 * - The stdout port first carries a line `READY NONCE`, when all ports are open: input that is sent before may be lost.
 * - Output ports carry the bytes as they come, then `\0NONCE\n` once every writer has closed the stream.
 * - The input port carries a line `BEGIN NONCE`, then frames: a line with the length in decimal, at most 262144, and that
 *   many bytes. Length 0 is the end of input. When the command no longer reads, the port is closed in the guest.
 *
 * Its own faults are told on the caller's stderr: 125 (usage, ports absent or in use) and 126 (DIR). When COMMAND is not
 * found (127) or not executable (126), the message is on the stderr port and all trailers still come. A file that the kernel takes
 * for no program is run by the shell, through `microvm-start.sh`.
 *
 * @category programs
 * @since 0.1.0
 */
export const exec: Uint8Array = Exec.exec

/**
 * `shutdown [-P | -H | -r] …`: ends all processes in order, then powers off (the default), halts or reboots. The agent
 * calls it as `shutdown -h -P +0 "reason"`; the time is taken as now. The processes have a second to act on SIGTERM.
 *
 * When all is written it says so, by the kernel and after an empty line: `microvm-shutdown: all is written, poweroff`, or `halt`
 * or `reboot`.
 *
 * Where something is mounted that lies on a block device, or where the kernel was told `microvm.off`, `microvm-shutdown.sh` does it.
 *
 * @category programs
 * @since 0.1.0
 */
export const shutdown: Uint8Array = Shutdown.shutdown

/**
 * `microvm-vsock PORT`: a terminal in raw mode (pty(7)), whose far end is whoever is connected to PORT of vsock(7), one
 * after the other. Its descriptor 5 is the terminal; bytes wait in it while nobody is connected. SIGPIPE is to be ignored.
 *
 * A connection is served in one direction at a time: a far end that sends without end while nobody reads the terminal is
 * not heard, and gets nothing either.
 *
 * Ends with 1 when nobody can connect to the port.
 *
 * @category programs
 * @since 0.1.0
 */
export const vsock: Uint8Array = elf([
  [0x48, 0x8b, 0x74, 0x24, 0x10], //          mov  rsi, [rsp+16]    PORT
  [0x31, 0xdb], //                            xor  ebx, ebx
  label("digit"),
  [0x0f, 0xb6, 0x06], //                      movzx eax, byte [rsi]
  TEST_EAX,
  to("zero", "parsed"),
  [0x6b, 0xdb, 0x0a], //                      imul ebx, ebx, 10
  [0x8d, 0x5c, 0x03, 0xd0], //                lea  ebx, [rbx+rax-'0']
  [0x48, 0xff, 0xc6], //                      inc  rsi
  to("always", "digit"),
  label("parsed"),
  RSP(65536), //                              sub  rsp, 65536

  EAX(41), //                                 socket
  [0xbf, ...le(40, 4)], //                    mov  edi, AF_VSOCK
  [0xbe, ...le(1, 4)], //                     mov  esi, SOCK_STREAM
  [0x31, 0xd2], //                            xor  edx, edx
  SYSCALL,
  [0x41, 0x89, 0xc4], //                      mov  r12d, eax        descriptor 3
  [0xc7, 0x04, 0x24, ...le(40, 4)], //        mov  dword [rsp], AF_VSOCK
  [0x89, 0x5c, 0x24, 0x04], //                mov  [rsp+4], ebx     the port
  [0x83, 0x4c, 0x24, 0x08, 0xff], //          or   dword [rsp+8], -1        VMADDR_CID_ANY
  [0x83, 0x64, 0x24, 0x0c, 0x00], //          and  dword [rsp+12], 0
  EAX(49), //                                 bind
  [0x44, 0x89, 0xe7], //                      mov  edi, r12d
  [0x48, 0x89, 0xe6], //                      mov  rsi, rsp
  [0xba, ...le(16, 4)], //                    mov  edx, 16
  SYSCALL,
  EAX(50), //                                 listen                without it, or the bind, accept fails below
  [0x44, 0x89, 0xe7], //                      mov  edi, r12d
  [0xbe, ...le(1, 4)], //                     mov  esi, 1
  SYSCALL,

  EAX(2), //                                  open
  { lea: [0x48, 0x8d, 0x3d], of: "ptmx" }, // lea  rdi, [rip+ptmx]
  [0xbe, ...le(0o402, 4)], //                 mov  esi, O_RDWR | O_NOCTTY
  SYSCALL,
  [0x41, 0x89, 0xc5], //                      mov  r13d, eax        descriptor 4
  [0x83, 0x24, 0x24, 0x00], //                and  dword [rsp], 0
  EAX(16), //                                 ioctl
  [0x44, 0x89, 0xef], //                      mov  edi, r13d
  [0xbe, ...le(0x40045431, 4)], //            mov  esi, TIOCSPTLCK
  [0x48, 0x89, 0xe2], //                      mov  rdx, rsp
  SYSCALL,
  EAX(16), //                                 ioctl
  [0x44, 0x89, 0xef], //                      mov  edi, r13d
  [0xbe, ...le(0x5441, 4)], //                mov  esi, TIOCGPTPEER
  [0xba, ...le(0o402, 4)], //                 mov  edx, O_RDWR | O_NOCTTY
  SYSCALL,
  [0x89, 0xc7], //                            mov  edi, eax         descriptor 5
  EAX(16), //                                 ioctl
  [0xbe, ...le(0x5402, 4)], //                mov  esi, TCSETS
  { lea: [0x48, 0x8d, 0x15], of: "raw" }, //  lea  rdx, [rip+raw]
  SYSCALL,

  label("accept"),
  EAX(43), //                                 accept
  [0x44, 0x89, 0xe7], //                      mov  edi, r12d
  [0x31, 0xf6], //                            xor  esi, esi
  [0x31, 0xd2], //                            xor  edx, edx
  SYSCALL,
  TEST_EAX,
  to("notNegative", "connected"),
  EAX(60), //                                 exit
  [0xbf, ...le(1, 4)], //                     mov  edi, 1
  SYSCALL,

  label("connected"),
  [0x41, 0x89, 0xc6], //                      mov  r14d, eax
  label("poll"), //                           the descriptors, each with POLLIN and no result yet
  [0x44, 0x89, 0x34, 0x24], //                mov  [rsp], r14d
  [0xc7, 0x44, 0x24, 0x04, ...le(1, 4)], //   mov  dword [rsp+4], 1
  [0x44, 0x89, 0x6c, 0x24, 0x08], //          mov  [rsp+8], r13d
  [0xc7, 0x44, 0x24, 0x0c, ...le(1, 4)], //   mov  dword [rsp+12], 1
  EAX(7), //                                  poll
  [0x48, 0x89, 0xe7], //                      mov  rdi, rsp
  [0xbe, ...le(2, 4)], //                     mov  esi, 2
  [0x83, 0xca, 0xff], //                      or   edx, -1
  SYSCALL,
  [0x44, 0x89, 0xf3], //                      mov  ebx, r14d        from the connection
  [0x45, 0x89, 0xef], //                      mov  r15d, r13d       to the terminal
  [0x66, 0x83, 0x7c, 0x24, 0x06, 0x00], //    cmp  word [rsp+6], 0
  to("notZero", "copy"),
  [0x44, 0x87, 0xfb], //                      xchg ebx, r15d        or the other way
  to("always", "copy"),
  label("next"),
  to("always", "accept"),

  label("copy"),
  [0x31, 0xc0], //                            xor  eax, eax         read
  [0x89, 0xdf], //                            mov  edi, ebx
  [0x48, 0x8d, 0x74, 0x24, 0x10], //          lea  rsi, [rsp+16]
  [0xba, ...le(65520, 4)], //                 mov  edx, 65520
  SYSCALL,
  TEST_EAX,
  to("notPositive", "hang up"),
  [0x89, 0xc3], //                            mov  ebx, eax
  [0x48, 0x8d, 0x6c, 0x24, 0x10], //          lea  rbp, [rsp+16]
  label("write"),
  EAX(1), //                                  write
  [0x44, 0x89, 0xff], //                      mov  edi, r15d
  [0x48, 0x89, 0xee], //                      mov  rsi, rbp
  [0x89, 0xda], //                            mov  edx, ebx
  SYSCALL,
  TEST_EAX,
  to("notPositive", "hang up"),
  [0x48, 0x01, 0xc5], //                      add  rbp, rax
  [0x29, 0xc3], //                            sub  ebx, eax
  to("notZero", "write"),
  to("always", "poll"),
  label("hang up"),
  EAX(3), //                                  close
  [0x44, 0x89, 0xf7], //                      mov  edi, r14d
  SYSCALL,
  to("always", "next"),

  label("ptmx"),
  text("/dev/ptmx"),
  // struct termios: no processing of input, output or lines; 8 bits, the receiver on; a read waits for one byte.
  label("raw"),
  [...le(0, 4), ...le(0, 4), ...le(0o277, 4), ...le(0, 4)],
  [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
])
