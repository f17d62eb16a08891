// Tells the kubelet of a CSI driver's socket. It stands in for the sidecar node-driver-registrar, which is not to be had
// from the Go module proxy here, and takes the flags of that one which a driver's manifest gives it.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type server struct {
	registration.UnimplementedRegistrationServer
	info *registration.PluginInfo
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return s.info, nil
}

// A refusal ends the process, so that the container is started again and the kubelet asked again.
func (s *server) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	log.Printf("the kubelet registered %s: %v %s", s.info.Name, status.PluginRegistered, status.Error)
	if !status.PluginRegistered {
		os.Exit(1)
	}
	return &registration.RegistrationStatusResponse{}, nil
}

func driverName(address string, timeout time.Duration) string {
	connection, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	answer, err := csi.NewIdentityClient(connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		log.Fatalf("GetPluginInfo at %s: %v", address, err)
	}
	return answer.Name
}

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket in this container")
	path := flag.String("kubelet-registration-path", "", "the driver's socket on the host")
	folder := flag.String("plugin-registration-path", "/registration", "the kubelet's folder of plugin sockets in this container")
	health := flag.String("http-endpoint", "", "where /healthz answers; none when empty")
	timeout := flag.Duration("timeout", 30*time.Second, "how long to wait for the driver")
	flag.Int("v", 0, "taken and not used: there is little to log")
	flag.Parse()
	if *path == "" {
		log.Fatal("--kubelet-registration-path is missing: the driver's socket as the host sees it")
	}

	name := driverName(*address, *timeout)
	socket := filepath.Join(*folder, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	if *health != "" {
		http.HandleFunc("/healthz", func(answer http.ResponseWriter, _ *http.Request) { answer.Write([]byte("ok")) })
		go func() { log.Fatal(http.ListenAndServe(*health, nil)) }()
	}
	registrar := grpc.NewServer()
	registration.RegisterRegistrationServer(registrar, &server{info: &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: name, Endpoint: *path, SupportedVersions: []string{"1.0.0"},
	}})
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() { <-stop; registrar.Stop() }()
	log.Printf("%s is offered to the kubelet at %s", name, socket)
	if err := registrar.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
