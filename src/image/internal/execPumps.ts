import { EAX, label, le, type Part, SYSCALL } from "./machineCode.ts"

/** Of `execProgram.ts`: the three processes that carry the streams, and the one that starts them. */
export const pumps: ReadonlyArray<Part> = [
  label("pumps"),

  // a pump from r12d to r13d with its room at rbp: the input's first, since it has to end with SIGTERM
  [0x41, 0xbc, ...le(5, 4)], //               mov r12d, 5
  [0x41, 0xbd, ...le(7, 4)], //               mov r13d, 7
  [0x49, 0x8d, 0xae, 0x00, 0x00, 0x01, 0x00], // lea rbp, [r14+0x10000]
  EAX(56), //                                 clone
  [0xbf, ...le(0x111, 4)], //                 mov edi, 0x111
  [0x31, 0xf6], //                            xor esi, esi
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x74, to: "pump" }, //              jz

  // the others ignore SIGTERM: a shutdown signals every process at once, and the last words of the command still have to get through
  EAX(13), //                                 rt_sigaction
  [0xbf, ...le(15, 4)], //                    mov edi, 15
  { lea: [0x48, 0x8d, 0x35], of: "ignore" }, // lea rsi, [rip+ignore]
  [0x31, 0xd2], //                            xor edx, edx
  [0x41, 0xba, ...le(8, 4)], //               mov r10d, 8
  SYSCALL,

  // from the pipe of stdout
  [0x41, 0xbc, ...le(8, 4)], //               mov r12d, 8
  [0x41, 0xbd, ...le(3, 4)], //               mov r13d, 3
  [0x49, 0x8d, 0xae, 0x00, 0x00, 0x02, 0x00], // lea rbp, [r14+0x20000]
  EAX(56), //                                 clone
  [0xbf, ...le(0x111, 4)], //                 mov edi, 0x111
  [0x31, 0xf6], //                            xor esi, esi
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x74, to: "pump" }, //              jz

  // from that of stderr
  [0x41, 0xbc, ...le(10, 4)], //              mov r12d, 10
  [0x41, 0xbd, ...le(4, 4)], //               mov r13d, 4
  [0x49, 0x8d, 0xae, 0x00, 0x00, 0x03, 0x00], // lea rbp, [r14+0x30000]
  EAX(56), //                                 clone
  [0xbf, ...le(0x111, 4)], //                 mov edi, 0x111
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x74, to: "pump" }, //              jz
  { jump: 0xeb, to: "exit2" }, //             jmp

  // a port is busy, and a pipe has no end, for as long as anyone else has it open: nothing is left open but the two
  label("pump"),
  EAX(33), //                                 dup2
  [0x44, 0x89, 0xe7], //                      mov edi, r12d
  [0x31, 0xf6], //                            xor esi, esi
  SYSCALL,
  EAX(33), //                                 dup2
  [0x44, 0x89, 0xef], //                      mov edi, r13d
  [0xbe, ...le(1, 4)], //                     mov esi, 1
  SYSCALL,
  EAX(436), //                                close_range
  [0xbf, ...le(2, 4)], //                     mov edi, 2
  [0x83, 0xce, 0xff], //                      or esi, -1
  [0x31, 0xd2], //                            xor edx, edx
  SYSCALL,
  [0x41, 0x83, 0xfc, 0x05], //                cmp r12d, 5
  { jump: 0x74, to: "feed" }, //              je

  // to the host: all bytes, then the trailer
  label("drain"),
  [0x31, 0xc0], //                            xor eax, eax
  [0x31, 0xff], //                            xor edi, edi
  [0x48, 0x89, 0xee], //                      mov rsi, rbp
  [0xba, ...le(65536, 4)], //                 mov edx, 65536
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x7e, to: "trailer" }, //           jle
  [0x49, 0x89, 0xec], //                      mov r12, rbp
  [0x41, 0x89, 0xc5], //                      mov r13d, eax
  label("write"),
  EAX(1), //                                  write
  [0x89, 0xc7], //                            mov edi, eax
  [0x4c, 0x89, 0xe6], //                      mov rsi, r12
  [0x44, 0x89, 0xea], //                      mov edx, r13d
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x7e, to: "exit2" }, //             jle
  [0x49, 0x01, 0xc4], //                      add r12, rax
  [0x41, 0x29, 0xc5], //                      sub r13d, eax
  { jump: 0x75, to: "write" }, //             jnz
  { jump: 0xeb, to: "drain" }, //             jmp
  label("trailer"),
  EAX(1), //                                  write
  [0x89, 0xc7], //                            mov edi, eax
  [0x49, 0x8d, 0xb6, 0x85, 0x00, 0x00, 0x00], // lea rsi, [r14+133]
  [0xba, ...le(34, 4)], //                    mov edx, 34
  SYSCALL,
  label("exit2"),
  EAX(60), //                                 exit
  [0x31, 0xff], //                            xor edi, edi
  SYSCALL,

  // from the host: ebx bytes of a frame are left; r9d: a length, so far; r15d: how much of BEGIN has been seen, whose B comes in it once;
  // r12 to r13: what was read
  label("feed"),
  [0x31, 0xdb], //                            xor ebx, ebx
  [0x45, 0x31, 0xc9], //                      xor r9d, r9d
  [0x45, 0x31, 0xff], //                      xor r15d, r15d
  [0x49, 0x89, 0xec], //                      mov r12, rbp
  [0x49, 0x89, 0xed], //                      mov r13, rbp
  label("next"),
  [0x4d, 0x39, 0xec], //                      cmp r12, r13
  { jump: 0x72, to: "have" }, //              jb
  [0x31, 0xc0], //                            xor eax, eax
  [0x31, 0xff], //                            xor edi, edi
  [0x48, 0x89, 0xee], //                      mov rsi, rbp
  [0xba, ...le(65536, 4)], //                 mov edx, 65536
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x7e, to: "exit2" }, //             jle
  [0x49, 0x89, 0xec], //                      mov r12, rbp
  [0x4c, 0x8d, 0x6c, 0x05, 0x00], //          lea r13, [rbp+rax]
  label("have"),
  [0x85, 0xdb], //                            test ebx, ebx
  { jump: 0x75, to: "data" }, //              jnz
  [0x41, 0x0f, 0xb6, 0x04, 0x24], //          movzx eax, byte ptr [r12]
  [0x49, 0xff, 0xc4], //                      inc r12
  [0x41, 0x83, 0xff, 0x27], //                cmp r15d, 39
  { jump: 0x74, to: "length" }, //            je
  [0x43, 0x3a, 0x84, 0x3e, 0xc0, 0x00, 0x00, 0x00], // cmp al, [r14+r15+192]
  { jump: 0x75, to: "miss" }, //              jne
  [0x41, 0xff, 0xc7], //                      inc r15d
  { jump: 0xeb, to: "next" }, //              jmp
  label("miss"),
  [0x45, 0x31, 0xff], //                      xor r15d, r15d
  [0x3c, 0x42], //                            cmp al, 66
  { jump: 0x75, to: "next" }, //              jne
  [0x41, 0xff, 0xc7], //                      inc r15d
  { jump: 0xeb, to: "next" }, //              jmp
  label("length"),
  [0x3c, 0x0a], //                            cmp al, 10
  { jump: 0x74, to: "line" }, //              je
  [0x83, 0xe8, 0x30], //                      sub eax, 48
  [0x83, 0xf8, 0x09], //                      cmp eax, 9
  { jump: 0x77, to: "exit2" }, //             ja
  [0x45, 0x6b, 0xc9, 0x0a], //                imul r9d, r9d, 10
  [0x41, 0x01, 0xc1], //                      add r9d, eax
  [0x41, 0x81, 0xf9, ...le(262144, 4)], //    cmp r9d, 262144
  { jump: 0x77, to: "exit2" }, //             ja
  { jump: 0xeb, to: "next" }, //              jmp
  label("line"),
  [0x45, 0x85, 0xc9], //                      test r9d, r9d
  { lea: [0x0f, 0x84], of: "exit2" }, //      jz
  [0x44, 0x89, 0xcb], //                      mov ebx, r9d
  [0x45, 0x31, 0xc9], //                      xor r9d, r9d
  { jump: 0xeb, to: "next" }, //              jmp
  label("data"),
  [0x4c, 0x89, 0xea], //                      mov rdx, r13
  [0x4c, 0x29, 0xe2], //                      sub rdx, r12
  [0x48, 0x39, 0xda], //                      cmp rdx, rbx
  [0x48, 0x0f, 0x47, 0xd3], //                cmova rdx, rbx
  EAX(1), //                                  write
  [0x89, 0xc7], //                            mov edi, eax
  [0x4c, 0x89, 0xe6], //                      mov rsi, r12
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { lea: [0x0f, 0x8e], of: "exit2" }, //      jle
  [0x49, 0x01, 0xc4], //                      add r12, rax
  [0x29, 0xc3], //                            sub ebx, eax
  { lea: [0xe9], of: "next" } //             jmp
]
