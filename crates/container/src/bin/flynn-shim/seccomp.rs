//! Which system calls a container may make: an allow-list, compiled to a BPF program.
//!
//! No weaker than Docker's default, and stricter where nothing an app does needs more: no 32-bit
//! calls at all, only four address families, no `pidfd_getfd`.
//!
//! Calls with a known number that are not on the list fail with EPERM; numbers unknown here fail
//! with ENOSYS, so that a C library newer than this list falls back to an older call. `clone3` has
//! its flags in memory where a filter cannot see them; it is ENOSYS too, and everybody falls back to
//! `clone`.
//!
//! The program is a binary search over ranges of numbers: about ten instructions for any call, and
//! 300 in all. General compilers make a linear chain of some 1,600, which the kernel walks once
//! for every number when a filter is loaded; with this one, loading is not worth measuring. It is
//! made anew in each shim: that takes microseconds, and there is no file to go stale.

use std::io;

use container::SeccompProfile;
use libc::sock_filter;

#[derive(Clone)]
pub struct Filter(Vec<sock_filter>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    Errno(i32),
    /// Allow unless the first argument has one of these bits.
    AllowWithoutBits(u32),
    /// Allow if the first argument is one of these, fail with the errno otherwise.
    AllowFirst(&'static [u32], i32),
}

const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else {
    0xc000_00b7
};
const X32_BIT: u32 = 0x4000_0000;

/// The last number this list knows (`mseal`).
const NUMBER_MAX: u32 = 462;

const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u32;

/// Linux, SVR4-like short inode numbers, 32-bit `uname`, both, and "tell me".
const PERSONALITIES: &[u32] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// AF_ALG, AF_VSOCK, AF_PACKET and the many seldom used ones have a history of holes.
const ADDRESS_FAMILIES: &[u32] = &[
    libc::AF_UNIX as u32,
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
    libc::AF_NETLINK as u32,
];

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

#[rustfmt::skip]
const FILES: &[libc::c_long] = calls! {
    SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2
    SYS_openat SYS_openat2 SYS_close SYS_close_range SYS_lseek SYS_fstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs
    SYS_faccessat SYS_faccessat2 SYS_dup SYS_dup3 SYS_fcntl SYS_flock SYS_ioctl SYS_fsync SYS_fdatasync SYS_sync
    SYS_syncfs SYS_sync_file_range SYS_truncate SYS_ftruncate SYS_fallocate SYS_fadvise64 SYS_readahead SYS_getdents64
    SYS_getcwd SYS_chdir SYS_fchdir SYS_chroot SYS_mkdirat SYS_mknodat SYS_unlinkat SYS_renameat SYS_renameat2 SYS_linkat
    SYS_symlinkat SYS_readlinkat SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_umask SYS_utimensat
    SYS_pipe2 SYS_splice SYS_tee SYS_vmsplice SYS_sendfile SYS_copy_file_range SYS_name_to_handle_at
    SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr
    SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
    SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch SYS_fanotify_mark
    SYS_eventfd2 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_ppoll SYS_pselect6
    SYS_io_setup SYS_io_destroy SYS_io_submit SYS_io_cancel SYS_io_getevents SYS_memfd_create SYS_memfd_secret
};

#[rustfmt::skip]
const MEMORY: &[libc::c_long] = calls! {
    SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_mincore SYS_msync SYS_brk SYS_mlock SYS_mlock2
    SYS_munlock SYS_mlockall SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect
    SYS_remap_file_pages SYS_process_madvise SYS_process_mrelease SYS_mseal
    SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semctl SYS_semtimedop
    SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl
    SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify SYS_mq_getsetattr
};

#[rustfmt::skip]
const PROCESSES: &[libc::c_long] = calls! {
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_kill SYS_tkill SYS_tgkill
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigsuspend SYS_rt_sigtimedwait
    SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_sigaltstack SYS_signalfd4 SYS_restart_syscall
    SYS_getpid SYS_getppid SYS_gettid SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid
    SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getgroups SYS_getresuid SYS_getresgid
    SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setfsuid SYS_setfsgid SYS_setgroups
    SYS_capget SYS_capset SYS_prctl SYS_seccomp SYS_set_tid_address SYS_set_robust_list SYS_get_robust_list SYS_rseq
    SYS_futex SYS_futex_waitv SYS_sched_yield SYS_sched_getaffinity SYS_sched_setaffinity SYS_sched_getattr
    SYS_sched_setattr SYS_sched_getparam SYS_sched_setparam SYS_sched_getscheduler SYS_sched_setscheduler
    SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_getpriority SYS_setpriority
    SYS_ioprio_get SYS_ioprio_set SYS_getcpu SYS_getrlimit SYS_setrlimit SYS_prlimit64 SYS_getrusage SYS_times
    SYS_sysinfo SYS_uname SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_pidfd_open SYS_pidfd_send_signal
    SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self SYS_getrandom
};

#[rustfmt::skip]
const TIME: &[libc::c_long] = calls! {
    SYS_gettimeofday SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_adjtimex
    SYS_getitimer SYS_setitimer SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun
    SYS_timer_delete SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime
};

#[rustfmt::skip]
const NETWORK: &[libc::c_long] = calls! {
    SYS_socketpair SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname SYS_getpeername
    SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg SYS_shutdown SYS_getsockopt SYS_setsockopt
};

/// The old forms that only the older architecture has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[libc::c_long] = calls! {
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_dup2 SYS_pipe SYS_poll SYS_select SYS_getdents
    SYS_rename SYS_mkdir SYS_rmdir SYS_link SYS_unlink SYS_symlink SYS_readlink SYS_chmod SYS_chown SYS_lchown
    SYS_mknod SYS_utime SYS_utimes SYS_futimesat SYS_fork SYS_vfork SYS_pause SYS_alarm SYS_getpgrp SYS_time
    SYS_epoll_create SYS_epoll_wait SYS_epoll_ctl_old SYS_epoll_wait_old SYS_inotify_init SYS_signalfd SYS_eventfd
    SYS_arch_prctl SYS_modify_ldt SYS_set_thread_area SYS_get_thread_area
};
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// What test suites and tools in package builds use on top.
#[rustfmt::skip]
const BUILDER: &[libc::c_long] = calls! {
    SYS_personality SYS_get_mempolicy SYS_set_mempolicy SYS_mbind SYS_kcmp
};

/// What runs the steps of a Dockerfile does, as root of the container's user namespace: the kernel lets it
/// mount only what such a root may, and nothing outside of the container sees it.
#[rustfmt::skip]
const IMAGES: &[libc::c_long] = calls! {
    SYS_mount SYS_umount2 SYS_unshare SYS_setns SYS_pivot_root SYS_sethostname SYS_setdomainname
};

/// Calls newer than the C library's table, by number: the same on every architecture.
const NEWER: &[libc::c_long] = &[
    451, /* cachestat */
    454, /* futex_wake */
    455, /* futex_wait */
    456, /* futex_requeue */
];

fn verdicts(profile: SeccompProfile) -> Vec<Verdict> {
    let mut verdicts = vec![Verdict::Errno(libc::EPERM); NUMBER_MAX as usize + 1];
    let mut set = |number: libc::c_long, verdict| verdicts[number as usize] = verdict;
    for number in [FILES, MEMORY, PROCESSES, TIME, NETWORK, OLDER, NEWER]
        .into_iter()
        .flatten()
    {
        set(*number, Verdict::Allow);
    }
    set(libc::SYS_clone, Verdict::AllowWithoutBits(NAMESPACE_FLAGS));
    set(libc::SYS_clone3, Verdict::Errno(libc::ENOSYS));
    set(
        libc::SYS_personality,
        Verdict::AllowFirst(PERSONALITIES, libc::EPERM),
    );
    set(
        libc::SYS_socket,
        Verdict::AllowFirst(ADDRESS_FAMILIES, libc::EAFNOSUPPORT),
    );
    if matches!(profile, SeccompProfile::Builder | SeccompProfile::Images) {
        for number in BUILDER {
            set(*number, Verdict::Allow);
        }
    }
    if profile == SeccompProfile::Images {
        for number in IMAGES {
            set(*number, Verdict::Allow);
        }
        // A further user namespace would have more rights than this one.
        let further = (libc::CLONE_NEWUSER | libc::CLONE_NEWNET) as u32;
        set(libc::SYS_clone, Verdict::AllowWithoutBits(further));
        set(libc::SYS_unshare, Verdict::AllowWithoutBits(further));
    }
    verdicts
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_IF_BITS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Offsets into `struct seccomp_data`; the machines are little-endian.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const FIRST_ARGUMENT_AT: u32 = 16;

fn instruction(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn give(verdict: u32) -> sock_filter {
    instruction(RETURN, verdict, 0, 0)
}

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

impl Filter {
    pub fn new(profile: SeccompProfile) -> Filter {
        let verdicts = verdicts(profile);
        let mut ranges: Vec<(u32, Verdict)> = Vec::new();
        for (number, verdict) in verdicts.into_iter().enumerate() {
            if ranges.last().is_none_or(|(_, last)| *last != verdict) {
                ranges.push((number as u32, verdict));
            }
        }
        // From here on, which includes every x32 number on x86_64.
        ranges.push((NUMBER_MAX + 1, Verdict::Errno(libc::ENOSYS)));
        let mut program = vec![
            instruction(LOAD, ARCHITECTURE_AT, 0, 0),
            instruction(JUMP_IF_EQUAL, ARCHITECTURE, 1, 0),
            give(libc::SECCOMP_RET_KILL_PROCESS),
            instruction(LOAD, NUMBER_AT, 0, 0),
        ];
        search(&ranges, &mut program);
        const { assert!(X32_BIT > NUMBER_MAX) };
        Filter(program)
    }

    /// For this process and all it will start, for ever. Needs `no_new_privs`.
    pub fn load(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: self.0.len() as u16,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel only reads the program, which outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Finds the range of the number that is loaded, and decides.
fn search(ranges: &[(u32, Verdict)], program: &mut Vec<sock_filter>) {
    if let [(_, verdict)] = ranges {
        return decide(*verdict, program);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    // A conditional jump reaches 255 instructions, an unconditional one any distance.
    program.push(instruction(JUMP_IF_AT_LEAST, right[0].0, 0, 1));
    let jump = program.len();
    program.push(instruction(JUMP, 0, 0, 0));
    search(left, program);
    program[jump].k = (program.len() - jump - 1) as u32;
    search(right, program);
}

fn decide(verdict: Verdict, program: &mut Vec<sock_filter>) {
    match verdict {
        Verdict::Allow => program.push(give(libc::SECCOMP_RET_ALLOW)),
        Verdict::Errno(number) => program.push(give(errno(number))),
        Verdict::AllowWithoutBits(bits) => program.extend([
            instruction(LOAD, FIRST_ARGUMENT_AT, 0, 0),
            instruction(JUMP_IF_BITS, bits, 0, 1),
            give(errno(libc::EPERM)),
            give(libc::SECCOMP_RET_ALLOW),
        ]),
        // The upper half of the argument is not looked at: the kernel takes these as 32 bits.
        Verdict::AllowFirst(values, number) => {
            program.push(instruction(LOAD, FIRST_ARGUMENT_AT, 0, 0));
            for (index, value) in values.iter().enumerate() {
                program.push(instruction(
                    JUMP_IF_EQUAL,
                    *value,
                    (values.len() - index) as u8,
                    0,
                ));
            }
            program.push(give(errno(number)));
            program.push(give(libc::SECCOMP_RET_ALLOW));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    /// What the kernel would do with the program.
    fn run(filter: &Filter, architecture: u32, number: u32, first: u32) -> u32 {
        let (mut at, mut loaded) = (0usize, 0u32);
        loop {
            let one = filter.0[at];
            at += 1;
            let condition = match one.code {
                LOAD => {
                    loaded = match one.k {
                        NUMBER_AT => number,
                        ARCHITECTURE_AT => architecture,
                        FIRST_ARGUMENT_AT => first,
                        other => panic!("load from {other}"),
                    };
                    continue;
                }
                JUMP => {
                    at += one.k as usize;
                    continue;
                }
                RETURN => return one.k,
                JUMP_IF_EQUAL => loaded == one.k,
                JUMP_IF_AT_LEAST => loaded >= one.k,
                JUMP_IF_BITS => loaded & one.k != 0,
                other => panic!("unknown instruction {other:#x}"),
            };
            at += usize::from(if condition { one.jt } else { one.jf });
        }
    }

    fn call(profile: SeccompProfile, number: libc::c_long, first: u32) -> u32 {
        run(&Filter::new(profile), ARCHITECTURE, number as u32, first)
    }

    #[test]
    fn every_number_gets_the_verdict_of_the_list() {
        for profile in [SeccompProfile::Default, SeccompProfile::Builder] {
            let filter = Filter::new(profile);
            for (number, verdict) in verdicts(profile).into_iter().enumerate() {
                let expected = match verdict {
                    Verdict::Allow => ALLOW,
                    Verdict::Errno(number) => errno(number),
                    Verdict::AllowWithoutBits(_) => ALLOW,
                    Verdict::AllowFirst(values, _) if values.contains(&0) => ALLOW,
                    Verdict::AllowFirst(_, number) => errno(number),
                };
                assert_eq!(
                    run(&filter, ARCHITECTURE, number as u32, 0),
                    expected,
                    "number {number}"
                );
            }
        }
    }

    #[test]
    fn what_could_leave_the_container_is_refused_in_both_profiles() {
        #[rustfmt::skip]
        let refused = calls! {
            SYS_mount SYS_umount2 SYS_pivot_root SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_move_mount
            SYS_open_tree SYS_mount_setattr SYS_unshare SYS_setns SYS_keyctl SYS_add_key SYS_request_key SYS_bpf
            SYS_perf_event_open SYS_userfaultfd SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register
            SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_kexec_file_load SYS_reboot SYS_swapon
            SYS_swapoff SYS_acct SYS_settimeofday SYS_clock_settime SYS_open_by_handle_at SYS_quotactl SYS_syslog
            SYS_sethostname SYS_setdomainname SYS_pidfd_getfd SYS_fanotify_init SYS_vhangup SYS_move_pages SYS_lookup_dcookie
        };
        for profile in [SeccompProfile::Default, SeccompProfile::Builder] {
            for number in refused {
                assert_eq!(call(profile, *number, 0), errno(libc::EPERM), "{number}");
            }
            let clone = |flags: i32| call(profile, libc::SYS_clone, flags as u32);
            assert_eq!(clone(libc::CLONE_VM | libc::CLONE_THREAD | libc::SIGCHLD), ALLOW);
            assert_eq!(clone(libc::CLONE_NEWUSER | libc::SIGCHLD), errno(libc::EPERM));
            assert_eq!(call(profile, libc::SYS_clone3, 0), errno(libc::ENOSYS));
            let socket = |family: i32| call(profile, libc::SYS_socket, family as u32);
            assert_eq!(socket(libc::AF_INET6), ALLOW);
            for family in [libc::AF_ALG, libc::AF_VSOCK, libc::AF_PACKET, libc::AF_BLUETOOTH] {
                assert_eq!(socket(family), errno(libc::EAFNOSUPPORT));
            }
        }
    }

    #[test]
    fn builds_of_images_may_mount_and_no_more() {
        let images = |number, first: i32| call(SeccompProfile::Images, number, first as u32);
        assert_eq!(images(libc::SYS_mount, 0), ALLOW);
        assert_eq!(images(libc::SYS_unshare, libc::CLONE_NEWNS), ALLOW);
        assert_eq!(images(libc::SYS_unshare, libc::CLONE_NEWUSER), errno(libc::EPERM));
        for number in
            calls! { SYS_bpf SYS_keyctl SYS_fsopen SYS_open_by_handle_at SYS_init_module SYS_reboot }
        {
            assert_eq!(images(*number, 0), errno(libc::EPERM), "{number}");
        }
    }

    #[test]
    fn personality_is_restricted_for_apps_and_free_for_builds() {
        let no_randomization = 0x4_0000;
        assert_eq!(call(SeccompProfile::Default, libc::SYS_personality, 8), ALLOW);
        assert_eq!(
            call(SeccompProfile::Default, libc::SYS_personality, no_randomization),
            errno(libc::EPERM)
        );
        assert_eq!(
            call(SeccompProfile::Builder, libc::SYS_personality, no_randomization),
            ALLOW
        );
    }

    #[test]
    fn other_architectures_die_and_unknown_numbers_do_not_exist() {
        let filter = Filter::new(SeccompProfile::Default);
        assert_eq!(run(&filter, 0x4000_0003, 1, 0), KILL);
        assert_eq!(run(&filter, ARCHITECTURE, X32_BIT | 1, 0), errno(libc::ENOSYS));
        assert_eq!(run(&filter, ARCHITECTURE, NUMBER_MAX + 1, 0), errno(libc::ENOSYS));
        assert!(filter.0.len() < 500, "{} instructions", filter.0.len());
    }
}
