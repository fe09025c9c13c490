import { pumps } from "./execPumps.ts"
import { ascii, EAX, elf, label, le, SYSCALL, text } from "./machineCode.ts"

/** `microvm-exec`, as `GuestPrograms.exec` says. */
export const exec: Uint8Array = elf([
  // r15: the environment, r14: room, zeroed: 0 the path of a port, 64 words, 128 READY and the trailer, 192 BEGIN, 4096 the file of the
  // command, then 64 KiB for each pump; r12: the words from SLOT on, r13: DIR
  [0x4c, 0x8d, 0x64, 0x24, 0x08], //          lea r12, [rsp+8]
  [0x48, 0x8b, 0x04, 0x24], //                mov rax, [rsp]
  [0x4c, 0x8d, 0x7c, 0xc4, 0x10], //          lea r15, [rsp+8*rax+16]
  [0x83, 0xf8, 0x05], //                      cmp eax, 5
  { lea: [0x0f, 0x82], of: "usage" }, //      jb
  EAX(9), //                                  mmap
  [0x31, 0xff], //                            xor edi, edi
  [0xbe, ...le(0x40000, 4)], //               mov esi, 0x40000
  [0xba, ...le(3, 4)], //                     mov edx, 3
  [0x41, 0xba, ...le(0x22, 4)], //            mov r10d, 0x22
  [0x49, 0x83, 0xc8, 0xff], //                or r8, -1
  [0x45, 0x31, 0xc9], //                      xor r9d, r9d
  SYSCALL,
  [0x49, 0x89, 0xc6], //                      mov r14, rax
  [0x45, 0x31, 0xed], //                      xor r13d, r13d
  [0x49, 0x83, 0xc4, 0x08], //                add r12, 8
  [0x49, 0x8b, 0x04, 0x24], //                mov rax, [r12]
  [0x66, 0x81, 0x38, 0x2d, 0x43], //          cmp word ptr [rax], 0x432d
  { jump: 0x75, to: "words" }, //             jne
  [0x80, 0x78, 0x02, 0x00], //                cmp byte ptr [rax+2], 0
  { jump: 0x75, to: "words" }, //             jne
  [0x4d, 0x8b, 0x6c, 0x24, 0x08], //          mov r13, [r12+8]
  [0x49, 0x83, 0xc4, 0x10], //                add r12, 16
  label("words"),

  // are there four, and is the third one "--"?
  [0x31, 0xc9], //                            xor ecx, ecx
  label("word"),
  [0x49, 0x83, 0x3c, 0xcc, 0x00], //          cmp qword ptr [r12+8*rcx], 0
  { jump: 0x74, to: "usage" }, //             jz
  [0xff, 0xc1], //                            inc ecx
  [0x83, 0xf9, 0x04], //                      cmp ecx, 4
  { jump: 0x72, to: "word" }, //              jb
  [0x49, 0x8b, 0x44, 0x24, 0x10], //          mov rax, [r12+16]
  [0x66, 0x81, 0x38, 0x2d, 0x2d], //          cmp word ptr [rax], 0x2d2d
  { jump: 0x75, to: "usage" }, //             jne
  [0x80, 0x78, 0x02, 0x00], //                cmp byte ptr [rax+2], 0
  { jump: 0x75, to: "usage" }, //             jne

  // 32 digits of NONCE
  [0x49, 0x8b, 0x74, 0x24, 0x08], //          mov rsi, [r12+8]
  [0x31, 0xc9], //                            xor ecx, ecx
  label("hex"),
  [0x0f, 0xb6, 0x04, 0x0e], //                movzx eax, byte ptr [rsi+rcx]
  [0x83, 0xe8, 0x30], //                      sub eax, 48
  [0x83, 0xf8, 0x0a], //                      cmp eax, 10
  { jump: 0x72, to: "hexok" }, //             jb
  [0x83, 0xe8, 0x31], //                      sub eax, 49
  [0x83, 0xf8, 0x06], //                      cmp eax, 6
  { jump: 0x73, to: "usage" }, //             jae
  label("hexok"),
  [0xff, 0xc1], //                            inc ecx
  [0x83, 0xf9, 0x20], //                      cmp ecx, 32
  { jump: 0x72, to: "hex" }, //               jb
  [0x80, 0x7e, 0x20, 0x00], //                cmp byte ptr [rsi+32], 0
  { jump: 0x75, to: "usage" }, //             jne

  // the path of a port up to the name of its stream, which rbp leads to; SLOT has four digits at most
  { lea: [0x48, 0x8d, 0x35], of: "ports" }, // lea rsi, [rip+ports]
  [0x4c, 0x89, 0xf7], //                      mov rdi, r14
  [0xb9, ...le(26, 4)], //                    mov ecx, 26
  [0xf3, 0xa4], //                            rep movsb
  [0x49, 0x8b, 0x34, 0x24], //                mov rsi, [r12]
  [0xb9, ...le(5, 4)], //                     mov ecx, 5
  label("digit"),
  [0xac], //                                  lodsb
  [0x84, 0xc0], //                            test al, al
  { jump: 0x74, to: "digits" }, //            jz
  [0xaa], //                                  stosb
  [0x2c, 0x30], //                            sub al, 48
  [0x3c, 0x0a], //                            cmp al, 10
  { jump: 0x73, to: "usage" }, //             jae
  [0xff, 0xc9], //                            dec ecx
  { jump: 0x75, to: "digit" }, //             jnz
  label("usage"),
  { lea: [0x48, 0x8d, 0x35], of: "usage text" }, // lea rsi, [rip+usage text]
  { lea: [0xe8], of: "say" }, //              call
  [0xbf, ...le(125, 4)], //                   mov edi, 125
  label("exit"),
  EAX(60), //                                 exit
  SYSCALL,
  label("digits"),
  [0x83, 0xf9, 0x05], //                      cmp ecx, 5
  { jump: 0x74, to: "usage" }, //             je
  [0xc6, 0x07, 0x2e], //                      mov byte ptr [rdi], 46
  [0x48, 0x8d, 0x6f, 0x01], //                lea rbp, [rdi+1]

  // before any port is opened
  [0x4d, 0x85, 0xed], //                      test r13, r13
  { jump: 0x74, to: "ports open" }, //        jz
  EAX(80), //                                 chdir
  [0x4c, 0x89, 0xef], //                      mov rdi, r13
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x74, to: "ports open" }, //        jz
  [0x4c, 0x89, 0xeb], //                      mov rbx, r13
  [0x41, 0xbd, ...le(126, 4)], //             mov r13d, 126
  { lea: [0x48, 0x8d, 0x2d], of: "dir text" }, // lea rbp, [rip+dir text]
  { lea: [0xe9], of: "tell" }, //             jmp

  // the ports become 3 (stdout), 4 (stderr) and 5 (stdin), close-on-exec. The pumps of the slot's last run may be about to end, so this
  // is tried for a second. stdin is opened last: what the host has sent is lost if it must be closed again
  label("ports open"),
  [0x41, 0xbd, ...le(100, 4)], //             mov r13d, 100
  label("again"),
  EAX(436), //                                close_range
  [0xbf, ...le(3, 4)], //                     mov edi, 3
  [0x83, 0xce, 0xff], //                      or esi, -1
  [0x31, 0xd2], //                            xor edx, edx
  SYSCALL,
  [0x31, 0xdb], //                            xor ebx, ebx
  label("port"),
  { lea: [0x48, 0x8d, 0x05], of: "streams" }, // lea rax, [rip+streams]
  [0x48, 0x8b, 0x04, 0xd8], //                mov rax, [rax+8*rbx]
  [0x48, 0x89, 0x45, 0x00], //                mov [rbp], rax
  EAX(2), //                                  open
  [0x4c, 0x89, 0xf7], //                      mov rdi, r14
  [0xbe, ...le(0x80101, 4)], //               mov esi, 0x80101
  [0x83, 0xfb, 0x02], //                      cmp ebx, 2
  { jump: 0x72, to: "writable" }, //          jb
  [0xbe, ...le(0x80100, 4)], //               mov esi, 0x80100
  label("writable"),
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x78, to: "notopen" }, //           js
  [0xff, 0xc3], //                            inc ebx
  [0x83, 0xfb, 0x03], //                      cmp ebx, 3
  { jump: 0x72, to: "port" }, //              jb
  { lea: [0xe9], of: "opened" }, //           jmp
  label("notopen"),
  [0x41, 0xff, 0xcd], //                      dec r13d
  { lea: [0x0f, 0x84], of: "inuse" }, //      jz
  [0x83, 0xf8, 0xfe], //                      cmp eax, -2
  { jump: 0x74, to: "absent" }, //            je
  { lea: [0x48, 0x8d, 0x3d], of: "pause" }, // lea rdi, [rip+pause]
  EAX(35), //                                 nanosleep
  [0x31, 0xf6], //                            xor esi, esi
  SYSCALL,
  { jump: 0xeb, to: "again" }, //             jmp

  // the kernel adds ports some time after their driver is loaded
  label("absent"),
  { lea: [0x48, 0x8d, 0x05], of: "porter" }, // lea rax, [rip+porter]
  [0x49, 0x89, 0x46, 0x40], //                mov [r14+64], rax
  [0x49, 0x8d, 0x4e, 0x12], //                lea rcx, [r14+18]
  [0x49, 0x89, 0x4e, 0x48], //                mov [r14+72], rcx
  { lea: [0x48, 0x8d, 0x0d], of: "second" }, // lea rcx, [rip+second]
  [0x49, 0x89, 0x4e, 0x50], //                mov [r14+80], rcx
  EAX(58), //                                 vfork
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x75, to: "waitport" }, //          jnz
  EAX(59), //                                 execve
  { lea: [0x48, 0x8d, 0x3d], of: "porter" }, // lea rdi, [rip+porter]
  [0x49, 0x8d, 0x76, 0x40], //                lea rsi, [r14+64]
  [0x4c, 0x89, 0xfa], //                      mov rdx, r15
  SYSCALL,
  [0xbf, ...le(127, 4)], //                   mov edi, 127
  { lea: [0xe9], of: "exit" }, //             jmp
  label("waitport"),
  [0x89, 0xc7], //                            mov edi, eax
  EAX(61), //                                 wait4
  [0x49, 0x8d, 0x76, 0x58], //                lea rsi, [r14+88]
  [0x31, 0xd2], //                            xor edx, edx
  [0x45, 0x31, 0xd2], //                      xor r10d, r10d
  SYSCALL,
  [0x41, 0x83, 0x7e, 0x58, 0x00], //          cmp dword ptr [r14+88], 0
  { lea: [0x0f, 0x84], of: "again" }, //      je
  [0x49, 0x8d, 0x5e, 0x12], //                lea rbx, [r14+18]
  { lea: [0x48, 0x8d, 0x2d], of: "absent text" }, // lea rbp, [rip+absent text]
  { jump: 0xeb, to: "fault" }, //             jmp
  label("inuse"),
  [0x49, 0x8b, 0x1c, 0x24], //                mov rbx, [r12]
  { lea: [0x48, 0x8d, 0x2d], of: "inuse text" }, // lea rbp, [rip+inuse text]
  label("fault"),
  [0x41, 0xbd, ...le(125, 4)], //             mov r13d, 125
  { lea: [0xe9], of: "tell" }, //             jmp
  label("opened"),

  // pipes, since a port could not be opened again as /dev/stderr: 6 and 7 for stdin, 8 and 9 for stdout, 10 and 11 for stderr
  [0x31, 0xdb], //                            xor ebx, ebx
  label("pipe"),
  EAX(293), //                                pipe2
  [0x49, 0x8d, 0x7e, 0x40], //                lea rdi, [r14+64]
  [0xbe, ...le(0x80000, 4)], //               mov esi, 0x80000
  SYSCALL,
  [0xff, 0xc3], //                            inc ebx
  [0x83, 0xfb, 0x03], //                      cmp ebx, 3
  { jump: 0x72, to: "pipe" }, //              jb

  // READY NONCE\n, of which NUL NONCE \n is made; BEGIN NONCE \n
  { lea: [0x48, 0x8d, 0x35], of: "ready" }, // lea rsi, [rip+ready]
  [0x49, 0x8d, 0xbe, 0x80, 0x00, 0x00, 0x00], // lea rdi, [r14+128]
  [0xb9, ...le(6, 4)], //                     mov ecx, 6
  [0xf3, 0xa4], //                            rep movsb
  [0x49, 0x8b, 0x74, 0x24, 0x08], //          mov rsi, [r12+8]
  [0xb9, ...le(32, 4)], //                    mov ecx, 32
  [0xf3, 0xa4], //                            rep movsb
  [0xc6, 0x07, 0x0a], //                      mov byte ptr [rdi], 10
  EAX(1), //                                  write
  [0xbf, ...le(3, 4)], //                     mov edi, 3
  [0x49, 0x8d, 0xb6, 0x80, 0x00, 0x00, 0x00], // lea rsi, [r14+128]
  [0xba, ...le(39, 4)], //                    mov edx, 39
  SYSCALL,
  [0x41, 0xc6, 0x86, 0x85, ...le(0, 4)], //   mov byte ptr [r14+133], 0
  { lea: [0x48, 0x8d, 0x35], of: "begin" }, // lea rsi, [rip+begin]
  [0x49, 0x8d, 0xbe, 0xc0, 0x00, 0x00, 0x00], // lea rdi, [r14+192]
  [0xb9, ...le(6, 4)], //                     mov ecx, 6
  [0xf3, 0xa4], //                            rep movsb
  [0x49, 0x8b, 0x74, 0x24, 0x08], //          mov rsi, [r12+8]
  [0xb9, ...le(32, 4)], //                    mov ecx, 32
  [0xf3, 0xa4], //                            rep movsb
  [0xc6, 0x07, 0x0a], //                      mov byte ptr [rdi], 10

  // the pumps are orphans, as the command must not have children that it never started: a process that starts them, and ends. All share
  // this memory and its stack, which nobody uses until that process has ended, and the pumps never
  EAX(56), //                                 clone
  [0xbf, ...le(0x4111, 4)], //                mov edi, 0x4111
  [0x31, 0xf6], //                            xor esi, esi
  [0x31, 0xd2], //                            xor edx, edx
  [0x45, 0x31, 0xd2], //                      xor r10d, r10d
  [0x45, 0x31, 0xc0], //                      xor r8d, r8d
  SYSCALL,
  [0x85, 0xc0], //                            test eax, eax
  { jump: 0x74, to: "pumps" }, //             jz
  [0x89, 0xc7], //                            mov edi, eax
  EAX(61), //                                 wait4
  [0x31, 0xf6], //                            xor esi, esi
  [0x31, 0xd2], //                            xor edx, edx
  [0x45, 0x31, 0xd2], //                      xor r10d, r10d
  SYSCALL,
  { lea: [0xe9], of: "command" }, //          jmp
  ...pumps,

  // the command gets its pipes, open to any user, and a session and a group of its own: so it takes neither the agent nor the pumps along
  // when it signals its group, and whoever ends the command can end its group
  label("command"),
  EAX(33), //                                 dup2
  [0xbf, ...le(6, 4)], //                     mov edi, 6
  [0x31, 0xf6], //                            xor esi, esi
  SYSCALL,
  EAX(33), //                                 dup2
  [0xbf, ...le(9, 4)], //                     mov edi, 9
  [0xbe, ...le(1, 4)], //                     mov esi, 1
  SYSCALL,
  EAX(33), //                                 dup2
  [0xbf, ...le(11, 4)], //                    mov edi, 11
  [0xbe, ...le(2, 4)], //                     mov esi, 2
  SYSCALL,
  [0x31, 0xdb], //                            xor ebx, ebx
  label("openup"),
  EAX(91), //                                 fchmod
  [0x89, 0xdf], //                            mov edi, ebx
  [0xbe, ...le(0o666, 4)], //                 mov esi, 0666
  SYSCALL,
  [0xff, 0xc3], //                            inc ebx
  [0x83, 0xfb, 0x03], //                      cmp ebx, 3
  { jump: 0x72, to: "openup" }, //            jb
  EAX(112), //                                setsid
  SYSCALL,

  // with a slash it is the file
  [0x49, 0x8b, 0x5c, 0x24, 0x18], //          mov rbx, [r12+24]
  [0x48, 0x89, 0xdf], //                      mov rdi, rbx
  label("slash"),
  [0x8a, 0x07], //                            mov al, [rdi]
  [0x48, 0xff, 0xc7], //                      inc rdi
  [0x3c, 0x2f], //                            cmp al, 47
  { lea: [0x0f, 0x84], of: "path" }, //       je
  [0x84, 0xc0], //                            test al, al
  { jump: 0x75, to: "slash" }, //             jnz

  // else it is looked for, as execvp(3) does
  [0x4c, 0x89, 0xfa], //                      mov rdx, r15
  label("variable"),
  [0x48, 0x8b, 0x32], //                      mov rsi, [rdx]
  [0x48, 0x83, 0xc2, 0x08], //                add rdx, 8
  [0x48, 0x85, 0xf6], //                      test rsi, rsi
  { jump: 0x74, to: "default" }, //           jz
  [0x81, 0x3e, ...le(0x48544150, 4)], //      cmp dword ptr [rsi], 0x48544150
  { jump: 0x75, to: "variable" }, //          jne
  [0x80, 0x7e, 0x04, 0x3d], //                cmp byte ptr [rsi+4], 61
  { jump: 0x75, to: "variable" }, //          jne
  [0x48, 0x83, 0xc6, 0x05], //                add rsi, 5
  { jump: 0xeb, to: "search" }, //            jmp
  label("default"),
  { lea: [0x48, 0x8d, 0x35], of: "default path" }, // lea rsi, [rip+default path]
  label("search"),
  [0x49, 0x8d, 0xae, 0x00, 0x10, 0x00, 0x00], // lea rbp, [r14+0x1000]
  label("candidate"),
  [0x48, 0x89, 0xef], //                      mov rdi, rbp
  label("directory"),
  [0x8a, 0x06], //                            mov al, [rsi]
  [0x3c, 0x3a], //                            cmp al, 58
  { jump: 0x74, to: "name" }, //              je
  [0x84, 0xc0], //                            test al, al
  { jump: 0x74, to: "name" }, //              jz
  [0x48, 0xff, 0xc6], //                      inc rsi
  { lea: [0xe8], of: "put" }, //              call
  { jump: 0xeb, to: "directory" }, //         jmp
  label("name"),
  [0x49, 0x89, 0xf5], //                      mov r13, rsi
  [0x48, 0x39, 0xef], //                      cmp rdi, rbp
  { jump: 0x75, to: "separate" }, //          jne
  [0xb0, 0x2e], //                            mov al, 46
  { lea: [0xe8], of: "put" }, //              call
  label("separate"),
  [0xb0, 0x2f], //                            mov al, 47
  { lea: [0xe8], of: "put" }, //              call
  [0x48, 0x89, 0xde], //                      mov rsi, rbx
  label("letter"),
  [0xac], //                                  lodsb
  { lea: [0xe8], of: "put" }, //              call
  [0x84, 0xc0], //                            test al, al
  { jump: 0x75, to: "letter" }, //            jnz
  EAX(59), //                                 execve
  [0x48, 0x89, 0xef], //                      mov rdi, rbp
  [0x49, 0x8d, 0x74, 0x24, 0x18], //          lea rsi, [r12+24]
  [0x4c, 0x89, 0xfa], //                      mov rdx, r15
  SYSCALL,
  [0x83, 0xf8, 0xfe], //                      cmp eax, -2
  { jump: 0x74, to: "another" }, //           je
  [0x83, 0xf8, 0xec], //                      cmp eax, -20
  { jump: 0x74, to: "another" }, //           je
  [0x83, 0xf8, 0xf3], //                      cmp eax, -13
  { jump: 0x75, to: "refused" }, //           jne
  label("another"),
  [0x4c, 0x89, 0xee], //                      mov rsi, r13
  [0x80, 0x3e, 0x00], //                      cmp byte ptr [rsi], 0
  { jump: 0x74, to: "notfound" }, //          je
  [0x48, 0xff, 0xc6], //                      inc rsi
  { jump: 0xeb, to: "candidate" }, //         jmp
  label("put"),
  [0x88, 0x07], //                            mov [rdi], al
  [0x48, 0xff, 0xc7], //                      inc rdi
  [0x49, 0x8d, 0x8e, 0x00, 0x00, 0x01, 0x00], // lea rcx, [r14+0x10000]
  [0x48, 0x39, 0xcf], //                      cmp rdi, rcx
  { jump: 0x73, to: "notfound" }, //          jae
  [0xc3], //                                  ret
  label("path"),
  [0x48, 0x89, 0xdd], //                      mov rbp, rbx
  EAX(59), //                                 execve
  [0x48, 0x89, 0xef], //                      mov rdi, rbp
  [0x49, 0x8d, 0x74, 0x24, 0x18], //          lea rsi, [r12+24]
  [0x4c, 0x89, 0xfa], //                      mov rdx, r15
  SYSCALL,
  [0x83, 0xf8, 0xfe], //                      cmp eax, -2
  { jump: 0x74, to: "missing" }, //           je
  [0x83, 0xf8, 0xec], //                      cmp eax, -20
  { jump: 0x74, to: "missing" }, //           je

  // a script without a #! line is for the shell
  label("refused"),
  [0x83, 0xf8, 0xf8], //                      cmp eax, -8
  { jump: 0x75, to: "unfit" }, //             jne
  { lea: [0x48, 0x8d, 0x05], of: "sh" }, //   lea rax, [rip+sh]
  [0x49, 0x89, 0x04, 0x24], //                mov [r12], rax
  { lea: [0x48, 0x8d, 0x05], of: "script" }, // lea rax, [rip+script]
  [0x49, 0x89, 0x44, 0x24, 0x08], //          mov [r12+8], rax
  [0x49, 0x89, 0x6c, 0x24, 0x10], //          mov [r12+16], rbp
  EAX(59), //                                 execve
  { lea: [0x48, 0x8d, 0x3d], of: "busybox" }, // lea rdi, [rip+busybox]
  [0x4c, 0x89, 0xe6], //                      mov rsi, r12
  [0x4c, 0x89, 0xfa], //                      mov rdx, r15
  SYSCALL,
  label("unfit"),
  [0x41, 0xbd, ...le(126, 4)], //             mov r13d, 126
  { lea: [0x48, 0x8d, 0x2d], of: "unfit text" }, // lea rbp, [rip+unfit text]
  { jump: 0xeb, to: "tell" }, //              jmp
  label("notfound"),
  [0x41, 0xbd, ...le(127, 4)], //             mov r13d, 127
  { lea: [0x48, 0x8d, 0x2d], of: "notfound text" }, // lea rbp, [rip+notfound text]
  { jump: 0xeb, to: "tell" }, //              jmp
  label("missing"),
  [0x41, 0xbd, ...le(127, 4)], //             mov r13d, 127
  { lea: [0x48, 0x8d, 0x2d], of: "missing text" }, // lea rbp, [rip+missing text]

  // a message on stderr, the command's once it has one: what rbx and rbp lead to; then ends with r13d
  label("tell"),
  { lea: [0x48, 0x8d, 0x35], of: "microvm" }, // lea rsi, [rip+microvm]
  { lea: [0xe8], of: "say" }, //              call
  [0x48, 0x89, 0xde], //                      mov rsi, rbx
  { lea: [0xe8], of: "say" }, //              call
  [0x48, 0x89, 0xee], //                      mov rsi, rbp
  { lea: [0xe8], of: "say" }, //              call
  [0x44, 0x89, 0xef], //                      mov edi, r13d
  { lea: [0xe9], of: "exit" }, //             jmp
  label("say"),
  [0x83, 0xca, 0xff], //                      or edx, -1
  label("count"),
  [0xff, 0xc2], //                            inc edx
  [0x80, 0x3c, 0x16, 0x00], //                cmp byte ptr [rsi+rdx], 0
  { jump: 0x75, to: "count" }, //             jne
  EAX(1), //                                  write
  [0xbf, ...le(2, 4)], //                     mov edi, 2
  SYSCALL,
  [0xc3], //                                  ret
  label("ports"),
  ascii("/dev/virtio-ports/microvm."),
  label("streams"),
  ...["stdout", "stderr", "stdin"].map((name) => text(name.padEnd(7, "\0"))),
  label("pause"),
  [...le(0, 8), ...le(10000000, 8)],
  label("ignore"),
  [...le(1, 8), ...le(0, 8), ...le(0, 8), ...le(0, 8)],
  label("ready"),
  ascii("READY "),
  label("begin"),
  ascii("BEGIN "),
  label("porter"),
  text("/sbin/microvm-port"),
  label("second"),
  text("1"),
  label("sh"),
  text("sh"),
  label("script"),
  text("/sbin/microvm-start.sh"),
  label("busybox"),
  text("/bin/busybox"),
  label("default path"),
  text("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
  label("microvm"),
  text("microvm: "),
  label("notfound text"),
  text(": not found in PATH\n"),
  label("missing text"),
  text(": not found\n"),
  label("unfit text"),
  text(": not executable\n"),
  label("usage text"),
  text("microvm-exec: usage: microvm-exec [-C DIR] SLOT NONCE -- COMMAND [ARGUMENT...]\n"),
  label("dir text"),
  text(": the directory cannot be entered\n"),
  label("absent text"),
  text(": there is no such port\n"),
  label("inuse text"),
  text(": this slot is in use: its last command, or a child of it, still has a stream open\n")
])
