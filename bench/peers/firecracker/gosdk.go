// The calls by firecracker-go-sdk.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	firecracker "github.com/firecracker-microvm/firecracker-go-sdk"
	"github.com/firecracker-microvm/firecracker-go-sdk/client/models"
)

func run(directory string, starts bool) error {
	ctx := context.Background()
	client := firecracker.NewClient(directory+"/api.sock", nil, false)
	kernel, root, socket := directory+"/kernel", directory+"/rootfs", directory+"/v.sock"
	_, err := client.PutMachineConfiguration(ctx, &models.MachineConfiguration{
		VcpuCount: firecracker.Int64(2), MemSizeMib: firecracker.Int64(256),
		Smt: firecracker.Bool(false), TrackDirtyPages: false,
	})
	if err != nil {
		return err
	}
	source := models.BootSource{KernelImagePath: &kernel, BootArgs: "console=ttyS0 reboot=k panic=1"}
	if _, err = client.PutGuestBootSource(ctx, &source); err != nil {
		return err
	}
	_, err = client.PutGuestDriveByID(ctx, "rootfs", &models.Drive{
		DriveID: firecracker.String("rootfs"), PathOnHost: &root,
		IsRootDevice: firecracker.Bool(true), IsReadOnly: firecracker.Bool(true),
	})
	if err != nil {
		return err
	}
	if _, err = client.PutGuestVsock(ctx, &models.Vsock{GuestCid: firecracker.Int64(3), UdsPath: &socket}); err != nil {
		return err
	}
	if !starts {
		return nil
	}
	_, err = client.CreateSyncAction(ctx, &models.InstanceActionInfo{ActionType: firecracker.String("InstanceStart")})
	return err
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		words := strings.Split(lines.Text(), " ")
		begin := time.Now()
		done := make(chan error, len(words))
		for _, directory := range words[1:] {
			go func() { done <- run(directory, words[0] == "start") }()
		}
		for range words[1:] {
			if err := <-done; err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		fmt.Println(float64(time.Since(begin).Microseconds()) / 1000)
	}
}
