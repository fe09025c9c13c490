/**
 * The programs of the guest's user land that are ours and no scripts: one does what there is no command for, the others do
 * what would take a shell milliseconds in an emulated guest. They are kept as machine code for x86-64, as no compiler is
 * needed then to make an image, and have no more to them than system calls.
 *
 * Source: syscall(2), adjtimex(2), random(4), execve(2), and the System V ABI for what lies on the stack at the start.
 *
 * @since 0.2.0
 */
import { elf, le, type Part, text } from "./internal/machineCode.ts"

const label = (name: string): Part => ({ label: name })
const SYSCALL: Part = [0x0f, 0x05]
/** `mov eax, number`, then the call. Its result is in eax; rcx and r11 are lost. */
const EAX = (number: number): Part => [0xb8, ...le(number, 4)]
const RSP = (bytes: number): Part => [0x48, 0x81, 0xec, ...le(bytes, 4)]
const TEST_EAX: Part = [0x85, 0xc0]
const jump = { always: 0xeb, below: 0x72, notZero: 0x75, negative: 0x78, notPositive: 0x7e } as const
const to = (when: keyof typeof jump, name: string): Part => ({ jump: jump[when], to: name })

/**
 * `microvm-refresh`: corrects the clock by an offset, and gives the kernel's random number generator a seed that it uses at
 * once. Reads exactly 280 bytes from stdin: a `struct timex` (208 bytes), then a `struct rand_pool_info` with 64 bytes of
 * seed.
 *
 * Exit codes: 0 when all was done, else the step that failed, with none done after it: 1 input too short,
 * 2 `/dev/random` not opened, 3 `RNDADDENTROPY`, 4 `RNDRESEEDCRNG`, 5 `adjtimex`.
 *
 * @category programs
 * @since 0.2.0
 */
export const refresh: Uint8Array = elf([
  // ebp is the exit code should the step fail. ebx counts the bytes of the input first, and then is the descriptor.
  RSP(288), //                                sub  rsp, 288         the input lies on the stack
  [0x31, 0xdb], //                            xor  ebx, ebx
  label("read"), //                           stdin may be a pipe and come in parts
  [0x31, 0xc0], //                            xor  eax, eax         read
  [0x31, 0xff], //                            xor  edi, edi         stdin
  [0x48, 0x8d, 0x34, 0x1c], //                lea  rsi, [rsp+rbx]
  [0xba, ...le(280, 4)], //                   mov  edx, 280
  [0x29, 0xda], //                            sub  edx, ebx
  SYSCALL,
  [0x6a, 0x01, 0x5d], //                      push 1; pop rbp       step 1
  TEST_EAX,
  to("notPositive", "exit"),
  [0x01, 0xc3], //                            add  ebx, eax
  [0x81, 0xfb, ...le(280, 4)], //             cmp  ebx, 280
  to("below", "read"),

  EAX(2), //                                  open
  { lea: [0x48, 0x8d, 0x3d], of: "random" }, // lea rdi, [rip+random]
  [0xbe, ...le(1, 4)], //                     mov  esi, O_WRONLY
  SYSCALL,
  [0xff, 0xc5], //                            inc  ebp              step 2
  TEST_EAX,
  to("negative", "exit"),
  [0x89, 0xc3], //                            mov  ebx, eax

  EAX(16), //                                 ioctl
  [0x89, 0xdf], //                            mov  edi, ebx
  [0xbe, ...le(0x40085203, 4)], //            mov  esi, RNDADDENTROPY
  [0x48, 0x8d, 0x94, 0x24, ...le(208, 4)], // lea  rdx, [rsp+208]   the rand_pool_info
  SYSCALL,
  [0xff, 0xc5], //                            inc  ebp              step 3
  TEST_EAX,
  to("negative", "exit"),

  EAX(16), //                                 ioctl
  [0x89, 0xdf], //                            mov  edi, ebx
  [0xbe, ...le(0x5207, 4)], //                mov  esi, RNDRESEEDCRNG, or the seed would be used in a minute or so
  SYSCALL,
  [0xff, 0xc5], //                            inc  ebp              step 4
  TEST_EAX,
  to("negative", "exit"),

  EAX(159), //                                adjtimex
  [0x48, 0x89, 0xe7], //                      mov  rdi, rsp         the timex
  SYSCALL,
  [0xff, 0xc5], //                            inc  ebp              step 5
  TEST_EAX, //                                the clock's state when it worked, which need not be 0
  to("negative", "exit"),
  [0x31, 0xed], //                            xor  ebp, ebp
  label("exit"),
  EAX(60), //                                 exit
  [0x89, 0xef], //                            mov  edi, ebp
  SYSCALL,
  label("random"),
  text("/dev/random")
])

/**
 * `microvm-start FILE NAME [ARGUMENT…]`: becomes FILE under the NAME it was called by, in a session and a group of its own,
 * with pipes for stdin, stdout and stderr that any user can open again. When the kernel does not take the file, the
 * script `microvm-start.sh` gets the same arguments.
 *
 * @category programs
 * @since 0.2.0
 */
export const start: Uint8Array = elf([
  [0x31, 0xdb], //                            xor  ebx, ebx
  label("open up"),
  EAX(91), //                                 fchmod
  [0x89, 0xdf], //                            mov  edi, ebx
  [0xbe, ...le(0o666, 4)], //                 mov  esi, 0666
  SYSCALL,
  [0xff, 0xc3], //                            inc  ebx
  [0x83, 0xfb, 0x03], //                      cmp  ebx, 3
  to("below", "open up"),

  EAX(112), //                                setsid
  SYSCALL,
  // On the stack: how many arguments, our own name, FILE, NAME, the others, 0, then the environment.
  [0x48, 0x8b, 0x04, 0x24], //                mov  rax, [rsp]
  [0x48, 0x8d, 0x5c, 0xc4, 0x10], //          lea  rbx, [rsp+8*rax+16]
  EAX(59), //                                 execve
  [0x48, 0x8b, 0x7c, 0x24, 0x10], //          mov  rdi, [rsp+16]    FILE
  [0x48, 0x8d, 0x74, 0x24, 0x18], //          lea  rsi, [rsp+24]    from NAME on
  [0x48, 0x89, 0xda], //                      mov  rdx, rbx
  SYSCALL,

  // The first two words become the shell's name and its script, so that the others are the script's arguments.
  { lea: [0x48, 0x8d, 0x05], of: "sh" }, //   lea  rax, [rip+sh]
  [0x48, 0x89, 0x04, 0x24], //                mov  [rsp], rax
  { lea: [0x48, 0x8d, 0x05], of: "script" }, // lea rax, [rip+script]
  [0x48, 0x89, 0x44, 0x24, 0x08], //          mov  [rsp+8], rax
  EAX(59), //                                 execve
  { lea: [0x48, 0x8d, 0x3d], of: "busybox" }, // lea rdi, [rip+busybox]
  [0x48, 0x89, 0xe6], //                      mov  rsi, rsp
  [0x48, 0x89, 0xda], //                      mov  rdx, rbx
  SYSCALL,
  EAX(60), //                                 exit
  [0xbf, ...le(126, 4)], //                   mov  edi, 126
  SYSCALL,
  label("sh"),
  text("sh"),
  label("script"),
  text("/sbin/microvm-start.sh"),
  label("busybox"),
  text("/bin/busybox")
])

/**
 * `microvm-drain NONCE`: copies stdin to stdout up to its end, then writes the trailer `\0NONCE\n`. NONCE has 32
 * characters.
 *
 * @category programs
 * @since 0.2.0
 */
export const drain: Uint8Array = elf([
  [0x48, 0x8b, 0x6c, 0x24, 0x10], //          mov  rbp, [rsp+16]    NONCE
  RSP(65536), //                              sub  rsp, 65536       as much as a pipe holds
  label("read"),
  [0x31, 0xc0], //                            xor  eax, eax         read
  [0x31, 0xff], //                            xor  edi, edi         stdin
  [0x48, 0x89, 0xe6], //                      mov  rsi, rsp
  [0xba, ...le(65536, 4)], //                 mov  edx, 65536
  SYSCALL,
  TEST_EAX,
  to("notPositive", "trailer"),
  [0x49, 0x89, 0xe4], //                      mov  r12, rsp
  [0x41, 0x89, 0xc5], //                      mov  r13d, eax
  label("write"), //                          a port takes 32 KiB at once
  EAX(1), //                                  write
  [0x89, 0xc7], //                            mov  edi, eax         stdout
  [0x4c, 0x89, 0xe6], //                      mov  rsi, r12
  [0x44, 0x89, 0xea], //                      mov  edx, r13d
  SYSCALL,
  TEST_EAX,
  to("notPositive", "exit"),
  [0x49, 0x01, 0xc4], //                      add  r12, rax
  [0x41, 0x29, 0xc5], //                      sub  r13d, eax
  to("notZero", "write"),
  to("always", "read"),

  label("trailer"),
  [0xc6, 0x04, 0x24, 0x00], //                mov  byte [rsp], 0
  [0x48, 0x8d, 0x7c, 0x24, 0x01], //          lea  rdi, [rsp+1]
  [0x48, 0x89, 0xee], //                      mov  rsi, rbp
  [0xb9, ...le(32, 4)], //                    mov  ecx, 32
  [0xf3, 0xa4], //                            rep  movsb
  [0xc6, 0x07, 0x0a], //                      mov  byte [rdi], 10
  EAX(1), //                                  write
  [0x89, 0xc7], //                            mov  edi, eax         stdout
  [0x48, 0x89, 0xe6], //                      mov  rsi, rsp
  [0xba, ...le(34, 4)], //                    mov  edx, 34
  SYSCALL,
  label("exit"),
  EAX(60), //                                 exit
  [0x31, 0xff], //                            xor  edi, edi
  SYSCALL
])
