// A CSI driver whose volumes are folders of one folder that all nodes see. It stands in for csi-driver-host-path, which is
// not to be had from the Go module proxy here: what fails with it is the cluster's fault, not the driver's that is tried.
// It bounds no size and has no block volumes.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const name = "standin.cluster.test"

func main() {
	socket := flag.String("socket", "/csi/csi.sock", "where to serve")
	root := flag.String("root", "/var/lib/shared", "the folder that all nodes see")
	node := flag.String("node", "", "the name of this node")
	flag.Parse()
	store := &store{root: *root}
	for _, folder := range []string{store.volumes(), store.snapshots()} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			log.Fatal(err)
		}
	}
	if err := os.Remove(*socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", *socket)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(logged))
	csi.RegisterIdentityServer(server, &identity{})
	csi.RegisterControllerServer(server, &controller{store: store})
	csi.RegisterNodeServer(server, &nodeServer{store: store, id: *node})
	log.Fatal(server.Serve(listener))
}

func logged(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	answer, err := handler(ctx, request)
	if !strings.HasSuffix(info.FullMethod, "/Probe") {
		log.Printf("%s: %v", info.FullMethod, err)
	}
	return answer, err
}

type identity struct {
	csi.UnimplementedIdentityServer
}

func (*identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: name, VendorVersion: "1"}, nil
}

func (*identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (*identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}}},
		{Type: &csi.PluginCapability_VolumeExpansion_{VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE}}},
	}}, nil
}

// What is stored: volumes/ID and snapshots/ID; an id is made of the name that was asked for, so that asking twice is no harm.
type store struct{ root string }

func (s *store) volumes() string   { return filepath.Join(s.root, "volumes") }
func (s *store) snapshots() string { return filepath.Join(s.root, "snapshots") }

// The folder of an id below `parent`; an id that is no plain name is refused.
func folder(parent, id string) (string, error) {
	if id == "" || id != filepath.Base(id) || strings.HasPrefix(id, ".") {
		return "", status.Errorf(codes.InvalidArgument, "%q is no id of this driver", id)
	}
	return filepath.Join(parent, id), nil
}

// Copies a tree to a place where there is none, whole or not at all.
func copyTree(source, target string) error {
	if _, err := os.Stat(target); err == nil {
		return nil
	}
	unfinished := filepath.Join(filepath.Dir(target), ".new-"+filepath.Base(target))
	os.RemoveAll(unfinished)
	if output, err := exec.Command("cp", "-a", source, unfinished).CombinedOutput(); err != nil {
		return status.Errorf(codes.Internal, "cp: %s", output)
	}
	return os.Rename(unfinished, target)
}
