package cluster

import "syscall"

func mountTmpfs(dir, options string) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, options)
}

func unmount(dir string) error { return syscall.Unmount(dir, 0) }
